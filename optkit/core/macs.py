"""Multiply-accumulates of a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def count_macs(module: nn.Module, example: tuple[Tensor, ...]) -> int:
    """MACs of convolutions, matrix products and attention in one forward pass (half of torch's FLOP count)."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*example)
    return counter.get_total_flops() // 2
