"""Effects as weighted sums over measured subsets, with intervals over seeds and test examples."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from optkit.core.statistics import Estimate, Values, mean_with_errors, weighted_metric

Key = TypeVar("Key", bound=Hashable)  # a subset of techniques, or a chain of them


@dataclass(frozen=True)
class LogCosts:
    """A cost of one subset's variant over the baseline's, as natural logarithms, one for each seed.

    Attributes:
        values: ``(seeds,)``.
        errors: standard errors ``(seeds,)``; zero for what is counted and not timed, infinite for a latency that was
            timed over too few rounds.
    """

    values: NDArray[np.float64]
    errors: NDArray[np.float64]


def quality_effect(weights: Mapping[Key, float], values: Mapping[Key, Values]) -> Estimate:
    """A weighted sum of the primary metric, in its unit.

    Args:
        weights: of the subsets; they sum to zero.
        values: of the examples of each seed's variant, ``(seeds, N)`` by subset.
    """
    return weighted_metric(list(weights.values()), [values[subset] for subset in weights])


def cost_effect(weights: Mapping[Key, float], costs: Mapping[Key, LogCosts]) -> Estimate:
    """A weighted sum of costs, as the factor by which they change: factors multiply to the total factor."""
    values = np.sum([weight * costs[subset].values for subset, weight in weights.items()], axis=0)
    # an error that is not known (infinite) does not matter where the weight is 0
    squares = np.sum([(weight * costs[subset].errors) ** 2 for subset, weight in weights.items() if weight], axis=0)
    found = mean_with_errors(values, np.sqrt(squares))
    return Estimate(math.exp(found.value), math.exp(found.low), math.exp(found.high))
