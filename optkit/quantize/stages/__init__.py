"""Quantization stages, one file each."""
