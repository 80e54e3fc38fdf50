"""Quantization on one graph: pure functions, and their stages."""

from optkit.quantize.pt2e import Quantized, quantize_static, replay_static
from optkit.quantize.stages import StaticQuantization

__all__ = ["Quantized", "StaticQuantization", "quantize_static", "replay_static"]
