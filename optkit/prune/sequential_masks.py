"""Masks by calibration data, block after block: Wanda and SparseGPT."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from optkit.core.errors import UserError
from optkit.models.block_by_block import block_by_block, second_moments
from optkit.prune.masks import Masks, masked_weights
from optkit.prune.options import SPARSEGPT, WANDA
from optkit.prune.pattern import Pattern, keep_largest

DAMPING = 0.01  # of the mean of the Hessian's diagonal, added to it
COLUMNS = 128  # whose masks are chosen together, from weights that make up for all columns before


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
    work, hessian = weight.detach().double().clone(), moment.double().clone()
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    diagonal.add_(DAMPING * diagonal.mean()).masked_fill_(dead, 1.0)
    work[:, dead] = 0
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    scale = factor.diagonal()
    keep = torch.ones_like(work, dtype=torch.bool)
    step = COLUMNS if pattern is None else max(1, COLUMNS // pattern.group) * pattern.group
    for start in range(0, work.shape[1], step):
        stop = min(start + step, work.shape[1])
        errors = torch.zeros_like(work[:, start:stop])
        if share is not None:
            cost = (work[:, start:stop] / scale[start:stop]).abs().flatten()
            keep[:, start:stop] = keep_largest(cost, round(share * cost.numel())).view(len(work), -1)
        for column in range(start, stop):
            if pattern is not None and (column - start) % pattern.group == 0:
                ahead = slice(column, column + pattern.group)
                keep[:, ahead] = pattern.keep(work[:, ahead] / scale[ahead], 1)
            left = work[:, column] * keep[:, column]
            errors[:, column - start] = (work[:, column] - left) / scale[column]
            work[:, column] = left
            behind = slice(column + 1, stop)
            work[:, behind] -= errors[:, column - start, None] * factor[column, behind]
        work[:, stop:] -= errors @ factor[start:stop, stop:]
    return work.to(weight.dtype), keep


def _keep(scores: Tensor, share: float | None, pattern: Pattern | None) -> Tensor:
    """What is kept of each row."""
    if pattern is not None:
        return pattern.keep(scores, 1)
    assert share is not None
    return keep_largest(scores.abs(), round(share * scores.shape[1]))
