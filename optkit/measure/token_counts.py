"""What a language model computes and moves for a token, counted on a few tokens; and the bytes of its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from optkit.core.macs import count_macs
from optkit.core.packed_weights import PackedWeights
from optkit.core.records import Measurement
from optkit.measure.traffic import count_traffic

FEW = 16
BYTES = {"fp64": 8, "fp32": 4, "bf16": 2, "fp16": 2}
PER_TOKEN = {"per": "token"}


def measure_tokens(module: nn.Module, prompt: Tensor, lengths: Sequence[int]) -> list[Measurement]:
    """MACs and modelled traffic of a token, at each length of prompts.

    MACs of a token are ``a + b * length``, for attention reads all tokens; both are counted on 16 and 32 tokens, so
    that a long prompt takes no time. The traffic is that of `count_traffic` without attention's share.

    Args:
        module: tokens ``(N, T)`` to logits.
        prompt: ``(N, T)`` of at least 32 tokens.
        lengths: of prompts.
    """
    few, twice = (prompt[:1, :n] for n in (FEW, 2 * FEW))
    short, long = (count_macs(module, (x,)) / x.shape[1] for x in (few, twice))
    slope = (long - short) / FEW
    each, once = count_traffic(module, ((few,), (torch.cat([few, few]),)))
    return [
        *(
            Measurement("macs", round(short + slope * (n - FEW)), conditions=PER_TOKEN | {"sequence_length": n})
            for n in lengths
        ),
        Measurement("numbers_moved_modelled", each // FEW, conditions=PER_TOKEN),
        Measurement("numbers_moved_modelled", once, conditions={"per": "batch"}),
    ]


def weight_bytes(module: nn.Module, precision: str) -> tuple[int, int]:
    """Bytes of a model's weights as an engine holds them, and those that it reads for a token.

    Weights of few bits count as they are packed, with their scales in half precision; all others in the precision. A
    table of embeddings is read a row at a time and counts for nothing in the second, unless the output shares it.

    Args:
        module: the model.
        precision: of float weights: fp32, bf16 or fp16.
    """
    width = BYTES[precision]
    held: dict[Any, int] = {}
    read: dict[Any, int] = {}
    for part in module.modules():
        own = dict(_weights_of(part, width))
        held |= own
        if not hasattr(part, "num_embeddings"):
            read |= own
    return sum(held.values()), sum(read.values())


def _weights_of(part: nn.Module, width: int) -> Iterator[tuple[Any, int]]:
    """What tells a weight from others, and its bytes."""
    if isinstance(part, PackedWeights):
        yield id(part), _packed(part)
        owned: list[Tensor] = [p for n, p in part.named_parameters(recurse=False) if n != "weight"]
    else:
        owned = [*part.parameters(recurse=False)]
        owned += [b for b in part.buffers(recurse=False) if b.dtype == torch.int8]
    for x in owned:
        yield x.data_ptr(), x.numel() * (width if x.is_floating_point() else x.element_size())


def _packed(part: PackedWeights) -> int:
    scales, zeros = part.scales(), part.zero_points()
    bits = part.bits * (math.prod(part.integers().shape) + (0 if zeros is None else zeros.numel()))
    return math.ceil(bits / 8) + 2 * scales.numel()
