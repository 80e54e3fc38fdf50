"""Unstructured pruning: weights set to zero one by one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

PRUNABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


def magnitude_masks(module: nn.Module, amount: float, scope: str = "global") -> dict[str, Tensor]:
    """Which weights to keep when the smallest are removed (Han et al., 2015).

    Args:
        module: its convolution and linear weights are ranked by absolute value.
        amount: share of these weights to remove, between 0 and 1.
        scope: ``global`` ranks all layers together, ``local`` each layer by itself.

    Returns:
        Bool tensors by parameter name, each of its parameter's shape; exactly ``round(amount * count)`` are False.
    """
    weights = {
        f"{n}.weight" if n else "weight": m.weight.detach()
        for n, m in module.named_modules()
        if isinstance(m, PRUNABLE)
    }
    if scope == "local":
        return {name: _keep_largest(weight.abs(), amount) for name, weight in weights.items()}
    flat = torch.cat([w.abs().flatten() for w in weights.values()])
    kept = _keep_largest(flat, amount)
    parts = torch.split(kept, [w.numel() for w in weights.values()])
    return {name: part.view_as(w) for (name, w), part in zip(weights.items(), parts, strict=True)}


def _keep_largest(scores: Tensor, amount: float) -> Tensor:
    """False for the ``round(amount * count)`` smallest; among equals the first go first."""
    order = scores.flatten().argsort(stable=True)
    keep = torch.ones(scores.numel(), dtype=torch.bool)
    keep[order[: round(amount * scores.numel())]] = False
    return keep.view_as(scores)


def apply_masks_(module: nn.Module, masks: dict[str, Tensor]) -> None:
    """Sets the weights that are not kept to zero, in place."""
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, keep in masks.items():
            parameters[name].mul_(keep)
