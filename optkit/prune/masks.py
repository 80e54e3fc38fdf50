"""Masks: weights set to zero one by one, by magnitude, freely or in N:M patterns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from optkit.core.checks import is_number
from optkit.core.errors import UserError
from optkit.prune.cut.analysis import protected_tensors
from optkit.prune.pattern import Pattern, keep_largest

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
PRUNABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED, nn.Linear)
Masks = dict[str, Tensor]


def magnitude_masks(
    module: nn.Module,
    amount: float | None,
    scope: str = "global",
    pattern: Pattern | None = None,
    protect: Sequence[str] = (),
) -> Masks:
    """Which weights to keep when the smallest are removed (Han et al., 2015).

    Args:
        module: its convolution and linear weights are ranked by absolute value.
        amount: share of these weights to remove, between 0 and 1; with a pattern at most what that removes, for which
            None stands.
        scope: ``global`` ranks all layers together, ``local`` each layer by itself.
        pattern: only weights that this pattern removes go; layers whose inputs its group does not divide stay whole.
        protect: patterns (as in :mod:`fnmatch`) of module names whose weights stay, and are not counted.

    Returns:
        Bool tensors by parameter name, each of its parameter's shape; exactly ``round(amount * count)`` are False.

    Raises:
        UserError: an amount beyond the pattern's, no weight to rank, or a name pattern that matches nothing.
    """
    return _masks(masked_weights(module, pattern, protect), torch.abs, amount, scope, pattern)


def random_masks(
    module: nn.Module,
    amount: float | None,
    scope: str = "global",
    pattern: Pattern | None = None,
    protect: Sequence[str] = (),
    seed: int = 0,
) -> Masks:
    """As `magnitude_masks`, by chance under a seed: the control. Weights that are zero go first."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(weight: Tensor) -> Tensor:
        return (1 - torch.rand(weight.shape, generator=generator)).to(weight.device) * (weight != 0)

    return _masks(masked_weights(module, pattern, protect), drawn, amount, scope, pattern)


def _masks(
    weights: dict[str, tuple[nn.Module, Tensor]],
    score: Callable[[Tensor], Tensor],
    amount: float | None,
    scope: str,
    pattern: Pattern | None,
) -> Masks:
    """Removes the weights of the lowest scores."""
    amount = _share(amount, pattern)
    scores = {}
    for name, (owner, weight) in weights.items():
        scores[name] = score(weight.detach())
        if pattern is not None:
            kept = pattern.keep(scores[name], int(not isinstance(owner, TRANSPOSED)))
            scores[name] = scores[name].masked_fill(kept, math.inf)
    if scope == "local":
        return {
            name: keep_largest(score.flatten(), round(amount * score.numel())).view_as(score)
            for name, score in scores.items()
        }
    flat = torch.cat([score.flatten() for score in scores.values()])
    parts = keep_largest(flat, round(amount * flat.numel())).split([score.numel() for score in scores.values()])
    return {name: part.view_as(score) for (name, score), part in zip(scores.items(), parts, strict=True)}


def masked_weights(
    module: nn.Module, pattern: Pattern | None = None, protect: Sequence[str] = ()
) -> dict[str, tuple[nn.Module, Tensor]]:
    """The weights that masks may touch, with their layers, by parameter name; a shared weight once.

    Raises:
        UserError: there is none, or a name pattern matches nothing.
    """
    shielded = set(protected_tensors(module, protect))
    found: dict[str, tuple[nn.Module, torch.Tensor]] = {}
    for name, weight in module.named_parameters():
        owner = module.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, PRUNABLE) and owner.weight is weight and name not in shielded:
            found[name] = (owner, weight)
    divided = {n: pair for n, pair in found.items() if pattern is None or _inputs(pair[0]) % pattern.group == 0}
    if not divided:
        why = f"no layer's inputs divide by {pattern.group}" if found and pattern else "no layer that is not protected"
        raise UserError(f"{why}: nothing to mask", key="pattern" if found else "protect")
    return divided


def _inputs(layer: nn.Module) -> int:
    """How many inputs each output of a layer sums over at one place of its kernel."""
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels // layer.groups  # type: ignore


def _share(amount: float | None, pattern: Pattern | None) -> float:
    if pattern is None:
        if amount is None:
            raise UserError("no amount, and no pattern that says one", key="amount", fix="0.5 is half")
        if not (is_number(amount) and 0 <= amount <= 1):
            raise UserError(f"{amount!r} is no share of the weights", key="amount", value=amount, fix="0.5 is half")
        return amount
    if amount is not None and amount > pattern.removed:
        message = f"{amount} is more than the {pattern.removed:.3g} that {pattern.kept}:{pattern.group} removes"
        raise UserError(message, key="amount", value=amount)
    return pattern.removed if amount is None else amount


def apply_masks_(module: nn.Module, masks: Masks) -> None:
    """Sets the weights that are not kept to zero, in place."""
    with torch.no_grad():
        for name, keep in masks.items():
            weight = module.get_parameter(name)
            weight.mul_(keep.to(weight.device))
