"""Multiply-accumulates of a module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def count_macs(module: nn.Module, example: tuple[Tensor, ...]) -> int:
    """MACs of convolutions, matrix products and attention in one forward pass (half of torch's FLOP count)."""
    # torch's counter passes over the CPU's attention kernel
    extra = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=extra) as counter:
        module(*example)
    return counter.get_total_flops() // 2


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)
