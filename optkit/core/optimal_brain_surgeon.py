"""A weight changed column by column, so that the columns behind make up for what each one loses.

The step that GPTQ and SparseGPT share (Frantar et al., 2023), after the optimal brain surgeon (Hassibi and Stork, 1992)
with one Hessian for all rows: the second moments of the layer's inputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

COLUMNS = 128  # whose errors are passed on to the columns behind them in one product
SMALL = 256  # a triangle of this size is inverted at once

Decide = Callable[[Tensor, int, int], Tensor]


def inverse_factor(moment: Tensor, damping: float, dead: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of damped second moments, in float64.

    Args:
        moment: ``(groups, inputs, inputs)``.
        damping: share of the mean of the diagonal that is added to it.
        dead: bool ``(groups, inputs)``, inputs that were never there; 1 takes the place of their moment.

    Returns:
        ``(groups, inputs, inputs)``. With ``moment = U U^T``, ``U`` upper triangular, this is the inverse of ``U``.
    """
    moment = moment.to(torch.float64, copy=True)
    diagonal = moment.diagonal(dim1=1, dim2=2)
    diagonal += damping * diagonal.mean(1, keepdim=True)
    diagonal.masked_fill_(dead, 1.0)
    # a layer's moments take much memory: no step keeps what the step before it made
    moment = torch.linalg.cholesky(moment.flip(1, 2))
    moment = moment.flip(1, 2).contiguous()
    _invert_(moment)
    return moment


def _invert_(upper: Tensor) -> None:
    """Inverts upper triangles ``(groups, n, n)`` in place, by halves: nearly all of it is matrix products."""
    size = upper.shape[1]
    if size <= SMALL:
        one = torch.eye(size, dtype=upper.dtype, device=upper.device)
        upper.copy_(torch.linalg.solve_triangular(upper, one.expand_as(upper), upper=True))
        return
    half = size // 2
    first, last = upper[:, :half, :half], upper[:, half:, half:]
    _invert_(first)
    _invert_(last)
    upper[:, :half, half:] = (first @ upper[:, :half, half:]).neg_() @ last


def column_by_column(weight: Tensor, factor: Tensor, decide: Decide, at_once: int = COLUMNS) -> None:
    """Gives the columns of a weight new values, in place, and passes the error of each on to those behind it.

    Args:
        weight: ``(groups, outputs, inputs)``, float64.
        factor: of `inverse_factor`.
        decide: ``decide(columns, place, column)`` gives the new values ``(groups, outputs)`` of a column from
            ``columns``, ``(groups, columns, outputs)``, as they now are: those before ``place`` have their new values,
            those from it on have taken over all errors so far. ``column`` is its number in the weight.
        at_once: how many columns ``columns`` has; the last may be fewer.
    """
    for start in range(0, weight.shape[2], at_once):
        stop = min(start + at_once, weight.shape[2])
        # a column is a row of this copy: read and written as one piece
        columns = weight[:, :, start:stop].transpose(1, 2).contiguous()
        errors = torch.empty_like(columns)
        for place in range(stop - start):
            row = factor[:, start + place, start + place : stop]
            new = decide(columns, place, start + place)
            error = (columns[:, place] - new) / row[:, :1]
            columns[:, place + 1 :].baddbmm_(row[:, 1:, None], error[:, None], alpha=-1)
            columns[:, place] = new
            errors[:, place] = error
        weight[:, :, start:stop] = columns.transpose(1, 2)
        weight[:, :, stop:].baddbmm_(errors.transpose(1, 2), factor[:, start:stop, stop:], alpha=-1)
