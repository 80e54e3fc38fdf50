"""Quotients whose divisor may be 0."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def quotient_or_zero(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """``above / below``, and 0 where ``below`` is 0; shapes are broadcast."""
    above, below = np.broadcast_arrays(above, below)
    return np.divide(above, below, out=np.zeros(above.shape), where=below != 0)


def mean_of_quotients(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis of ``above / below``, over the places where ``below`` is not 0; 0 if there are none."""
    return quotient_or_zero(quotient_or_zero(above, below).sum(-1), (np.asarray(below) != 0).sum(-1).astype(np.float64))
