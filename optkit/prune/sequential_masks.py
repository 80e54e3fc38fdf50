"""Masks by calibration data, block after block: Wanda and SparseGPT."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from optkit.core.errors import UserError
from optkit.core.optimal_brain_surgeon import COLUMNS, column_by_column, inverse_factor
from optkit.models.block_by_block import block_by_block, second_moments
from optkit.prune.masks import Masks, masked_weights
from optkit.prune.options import SPARSEGPT, WANDA
from optkit.prune.pattern import Pattern, keep_largest

DAMPING = 0.01  # of the mean of the Hessian's diagonal, added to it


def sequential_masks_(
    module: nn.Module,
    batches: Sequence[tuple[Tensor, ...]],
    *,
    criterion: str = SPARSEGPT,
    amount: float | None = None,
    pattern: Pattern | None = None,
    protect: Sequence[str] = (),
) -> Masks:
    """Sets weights in the residual blocks of a model to zero, in place, by what the layers take in on given data.

    Blocks are pruned one after the other, each on what the pruned blocks before it give out. Layers outside of blocks
    (embeddings, heads) stay whole. Each layer loses the same share.

    Args:
        module: in evaluation mode; the linear layers of its blocks change.
        batches: the model's inputs, by position; of several processes each gives its share.
        criterion: ``"wanda"`` removes from each row of a weight the smallest ``|weight| * norm of its input`` (Sun et
            al., ICLR 2024); ``"sparsegpt"`` also changes the weights that stay, so that they make up for those that go
            (Frantar and Alistarh, ICML 2023).
        amount: share of the weights to remove; this or a pattern.
        pattern: what goes from each group of inputs; layers whose inputs the group does not divide stay whole.
        protect: patterns (as in :mod:`fnmatch`) of module names whose weights stay.

    Returns:
        Bool tensors by parameter name, False where a weight was set to zero.

    Raises:
        UserError: no batch, no residual blocks, no linear layer in them, or not one of amount and pattern.
    """
    if (amount is None) == (pattern is None):
        found = "neither is" if amount is None else "both are"
        raise UserError(f"an amount or a pattern must be given, and {found}", key="amount", value=amount)
    owners = {
        name: layer for name, (layer, _) in masked_weights(module, pattern, protect).items() if type(layer) is nn.Linear
    }
    masks: Masks = {}
    for block in block_by_block(module, batches):
        layers = {name: layer for name, layer in owners.items() if name.startswith(f"{block.path}.")}
        moments = second_moments(lambda: [None for _ in block.run()], layers, diagonal=criterion == WANDA)  # noqa: B023
        for name, moment in moments.items():
            weight = layers[name].weight
            with torch.no_grad():
                if criterion == WANDA:
                    keep = _keep(weight * moment.sqrt(), amount, pattern)
                    weight.mul_(keep)
                else:
                    changed, keep = sparsegpt(weight, moment, amount, pattern)
                    weight.copy_(changed)
            masks[name] = keep
    if not masks:
        fix = "protect less, or criterion=magnitude, which needs no blocks"
        raise UserError("no linear layer in the model's residual blocks", key="criterion", value=criterion, fix=fix)
    return masks


def sparsegpt(
    weight: Tensor, moment: Tensor, share: float | None, pattern: Pattern | None = None
) -> tuple[Tensor, Tensor]:
    """A weight with a share of it removed, the rest changed so that the layer's output keeps its value.

    Column after column, the error of what is removed is passed on to the columns behind, as optimal brain surgery does
    with one Hessian for all rows. What goes is what costs least: ``w**2`` over the square of the diagonal of the
    Cholesky factor of the inverse Hessian, in each block of columns, or in each group of a pattern.

    Args:
        weight: ``(outputs, inputs)``.
        moment: second moments of the inputs ``(inputs, inputs)``.
        share: of the weights to remove; None with a pattern.
        pattern: what goes from each group of inputs.

    Returns:
        The new weight and what is kept of it, both ``(outputs, inputs)``.
    """
    work = weight.detach().to(torch.float64, copy=True)
    dead = moment.diagonal() == 0
    factor = inverse_factor(moment[None], DAMPING, dead[None])
    scale = factor[0].diagonal()
    work[:, dead] = 0
    keep = torch.ones_like(work, dtype=torch.bool)

    def decide(columns: Tensor, place: int, column: int) -> Tensor:
        ahead = columns.shape[1] if pattern is None else pattern.group
        if place % ahead == 0:
            cost = columns[0, place : place + ahead].T / scale[column : column + ahead]
            keep[:, column : column + ahead] = _keep_of(cost, share, pattern)
        return columns[:, place] * keep[:, column]

    at_once = COLUMNS if pattern is None else max(1, COLUMNS // pattern.group) * pattern.group
    column_by_column(work[None], factor, decide, at_once)
    return work.to(weight.dtype), keep


def _keep_of(cost: Tensor, share: float | None, pattern: Pattern | None) -> Tensor:
    """What is kept of columns ``(outputs, columns)`` by what it costs that they go."""
    if pattern is not None:
        return pattern.keep(cost, 1)
    assert share is not None
    return keep_largest(cost.abs().flatten(), round(share * cost.numel())).view_as(cost)


def _keep(scores: Tensor, share: float | None, pattern: Pattern | None) -> Tensor:
    """What is kept of each row."""
    if pattern is not None:
        return pattern.keep(scores, 1)
    assert share is not None
    return keep_largest(scores.abs(), round(share * scores.shape[1]))
