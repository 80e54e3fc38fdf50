"""Scales of activations before rounding: for the weights (AWQ), or for the activations (SmoothQuant)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from optkit.quantize.accuracy.folding import Site
from optkit.quantize.weights.grid import Grid
from optkit.quantize.weights.scheme import Scheme

STEPS = 20  # of the exponent, between 0 (no scaling) and 1


def search_scale(
    weights: Sequence[Tensor], moment: Tensor, schemes: Sequence[Scheme], site: Site
) -> tuple[Tensor, float]:
    """The scale of an activation after which rounding changes the outputs of its readers least (AWQ, Lin et al., 2024).

    Tried are the root mean square of each channel to a power between 0 and 1, and that over the mean magnitude of the
    channel's weights to the rest of the power.

    Args:
        weights: of the readers, ``(out, in)`` each.
        moment: second moments of the activation ``(in, in)``.
        schemes: of the weights of each.
        site: where the scale will be folded.

    Returns:
        The scale ``(in,)``, and the squared error that it leaves over the one that no scaling leaves.
    """
    size = moment.diagonal().sqrt().clamp(min=1e-12)
    reach = torch.cat([w.abs() / w.abs().mean() for w in weights]).mean(0).clamp(min=1e-12)
    best = torch.ones_like(size)
    plain = least = _error(weights, moment, schemes, best)
    for power in torch.linspace(0, 1, STEPS + 1)[1:].tolist():
        for scale in (size**power, size**power / reach ** (1 - power)):
            scale = site.shared(scale.clamp(min=1e-6))
            scale = scale / (scale.max() * scale.min()).sqrt()
            if (error := _error(weights, moment, schemes, scale)) < least:
                best, least = scale, error
    return best, least / plain if plain else 1.0


def smoothing_scale(weights: Sequence[Tensor], reach: Tensor, alpha: float, site: Site) -> Tensor:
    """The scale that moves the range of an activation's channels into the weights (SmoothQuant, Xiao et al., 2023).

    Args:
        weights: of the readers, ``(out, in)`` each.
        reach: largest magnitude of each channel ``(in,)``.
        alpha: how much of the range moves: 0 none, 1 all.
        site: where the scale will be folded.
    """
    across = torch.cat(list(weights)).abs().amax(0).clamp(min=1e-5)
    return site.shared((reach.clamp(min=1e-5) ** alpha / across ** (1 - alpha)).clamp(min=1e-5))


def _error(weights: Sequence[Tensor], moment: Tensor, schemes: Sequence[Scheme], scale: Tensor) -> float:
    total = 0.0
    for weight, scheme in zip(weights, schemes, strict=True):
        scaled = weight * scale
        error = Grid.minmax(scaled, scheme).nearest(scaled) / scale - weight
        total += float(((error @ moment) * error).sum())
    return total
