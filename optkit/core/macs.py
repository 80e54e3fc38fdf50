"""Multiply-accumulates of a module."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from optkit.core.attention import spelled_out
from optkit.core.compat.torch_operators import private_aten


def count_macs(module: nn.Module, example: tuple[Tensor, ...]) -> int:
    """MACs of convolutions, matrix products and attention in one forward pass (half of torch's FLOP count)."""
    return sum(macs_by_operator(module, example).values())


def macs_by_operator(module: nn.Module, example: tuple[Tensor, ...]) -> dict[str, int]:
    """The same, by the operator that does them (``aten.addmm``)."""
    # torch's counter passes over the CPU's attention kernel and over its kernels for quantized weights
    extra = {
        private_aten("_scaled_dot_product_flash_attention_for_cpu"): _attention_flops,
        private_aten("_weight_int8pack_mm"): _rows_flops,
        private_aten("_weight_int4pack_mm_for_cpu"): _rows_flops,
    }
    trained = [p for p in module.parameters() if p.requires_grad]
    try:
        for parameter in trained:  # the counter's hooks fail on one that is passed to a module (DeBERTa)
            parameter.requires_grad_(False)
        with torch.no_grad(), spelled_out(), FlopCounterMode(display=False, custom_mapping=extra) as counter:
            module(*example)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
    return {str(operator): flops // 2 for operator, flops in counter.get_flop_counts().get("Global", {}).items()}


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _rows_flops(rows: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return 2 * math.prod(out_shape) * rows[-1]
