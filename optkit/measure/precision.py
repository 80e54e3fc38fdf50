"""When interleaved series are precise enough to stop timing, and when that is checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from optkit.core.statistics import Estimate, median, ratio_of_medians

CHECKED_AT = (60, 120, 240)  # rounds; 60 of 5 calls are the 300 calls that a 99th percentile needs

Pair = tuple[str, str]


def precise_enough(samples: Mapping[str, NDArray[np.float64]], pairs: Sequence[Pair], precision: float) -> bool:
    """Whether every wanted ratio is known to ``precision``, half the interval's width over its value.

    An interval that is narrow by luck is also wrong more often. So stopping at the first narrow one would cost up to 5
    points of coverage. Two things keep it at 93 to 97% (``scripts/statistics_coverage.py``): the question is asked
    rarely (``CHECKED_AT``, each twice the one before), and it is asked twice: the interval of the first half of the
    rounds, which is the square root of 2 times as wide, must have been narrow enough for its length.

    Args:
        samples: by session, ``(rounds, calls)``.
        pairs: which latencies are to be divided, numerator first; without any, each latency itself is wanted.
        precision: such as 0.02.
    """
    rounds = len(next(iter(samples.values())))
    for count, wanted in ((rounds, precision), (rounds // 2, precision * math.sqrt(2))):
        first = {name: times[:count] for name, times in samples.items()}
        if any(_half_width(estimate) > wanted for estimate in _wanted(first, pairs)):
            return False
    return True


def has_intervals(samples: Mapping[str, NDArray[np.float64]], pairs: Sequence[Pair]) -> bool:
    """Whether the rounds are enough for an interval of every wanted ratio."""
    return all(estimate.ci for estimate in _wanted(samples, pairs))


def _wanted(samples: Mapping[str, NDArray[np.float64]], pairs: Sequence[Pair]) -> list[Estimate]:
    return [ratio_of_medians(samples[a], samples[b]) for a, b in pairs] or [median(x) for x in samples.values()]


def _half_width(estimate: Estimate) -> float:
    return (estimate.high - estimate.low) / (2 * estimate.value)
