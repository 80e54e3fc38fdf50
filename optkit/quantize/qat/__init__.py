"""Quantization-aware training on the graph of static quantization."""
