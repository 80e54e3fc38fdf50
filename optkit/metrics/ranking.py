"""Average precision of ranked decisions, under many weightings of the examples at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from optkit.core.ratios import quotient_or_zero


def average_precision(
    scores: NDArray[np.float64], targets: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Sum over thresholds of precision times the gain in recall, as `sklearn.metrics.average_precision_score` has it.

    Examples of equal scores are at one threshold.

    Args:
        scores: ``(N,)``.
        targets: ``(N,)``, 1 where it is there.
        weights: ``(draws, N)``.

    Returns:
        average precision ``(draws,)``, and whether a draw has any example that is there ``(draws,)``
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.diff(scores[order]) != 0, True)
    ranked = weights[:, order]
    right = np.cumsum(ranked * targets[order], axis=1)[:, ends]
    precision = quotient_or_zero(right, np.cumsum(ranked, axis=1)[:, ends])
    gained = np.diff(right, axis=1, prepend=0)
    total = right[:, -1]
    return quotient_or_zero((precision * gained).sum(1), total), total > 0
