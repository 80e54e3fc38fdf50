"""Figures of a variant that need no timing: parameters, zeros, MACs, bytes on disk."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from optkit.core.artifact import Artifact
from optkit.core.macs import count_macs
from optkit.core.records import Measurement


def measure_static(artifact: Artifact, module: nn.Module) -> list[Measurement]:
    """Parameters, sparsity, and the size of the artifact.

    Args:
        artifact: for the bytes on disk.
        module: the variant's module.
    """
    weights = list(_weights(module))
    count = sum(w.numel() for w in weights)
    matrices = [w for w in weights if w.dim() > 1]
    zeros = sum(int((w == 0).sum()) for w in matrices)
    return [
        Measurement("params", count),
        Measurement("nonzeros", count - sum(int((w == 0).sum()) for w in weights)),
        Measurement("sparsity", zeros / max(sum(w.numel() for w in matrices), 1)),
        Measurement("size", artifact.size_bytes / 1e6, unit="MB"),
    ]


def measure_macs(module: nn.Module, example: tuple[Tensor, ...], conditions: dict[str, Any]) -> Measurement:
    """MACs an example; ``conditions`` says how long a text is."""
    return Measurement("macs", count_macs(module, example) // len(example[0]), conditions=conditions)


def _weights(module: nn.Module) -> list[Tensor]:
    """Parameters, and quantized weights, which are buffers: in a graph int8, in a layer what it says they stand for."""
    found: list[Tensor] = [*module.parameters()]
    for part in module.modules():
        if callable(float_weight := getattr(part, "float_weight", None)):
            found.append(float_weight())
        else:
            found += [b for b in part.buffers(recurse=False) if b.dtype == torch.int8]
    return found
