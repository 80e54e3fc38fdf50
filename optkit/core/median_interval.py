"""The interval of a median over rounds of timing, which are autocorrelated and now and then slow."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

FEWEST_COSINES = 6


def median_interval(series: NDArray[np.float64], confidence: float) -> tuple[float, float, float]:
    """Median of a series, and the limits of its two-sided interval, which are never outside the series.

    The limits are quantiles of the series, at 1/2 less and plus a half-width (Woodruff, 1952; of independent values
    this is the interval of the sign test). So a round that is slow counts as one round, however slow it is. The
    half-width is Student's quantile times the standard error of the share of rounds below the median. That error
    includes autocorrelation: its long-run variance is the mean square of the first cosine coefficients of the series of
    signs, and their number is the degrees of freedom (Lazarus, Lewis, Stock and Watson, 2018, with their 0.4 R^(2/3)
    coefficients, but at least 6).

    Coverage was simulated for independent and autocorrelated rounds and for rounds slowed up to 100 times, from 20
    rounds on: ``scripts/statistics_coverage.py``. A block bootstrap, which was used before, had limits outside the
    series; a parametric estimate of autocorrelation is misled by slow rounds.

    Args:
        series: one figure a round, in the order of the rounds, ``(R,)``.
        confidence: of the interval.

    Returns:
        The median and the limits. The limits are infinite if the smallest and largest round are too near to the
        median for this confidence.
    """
    rounds, middle = len(series), float(np.median(series))
    level = _lower_level(series, confidence)
    if level is None:
        return middle, -math.inf, math.inf
    ordered = np.sort(series)
    low, high = np.interp([level, 1 - level], np.arange(1, rounds + 1) / (rounds + 1), ordered)
    return middle, min(float(low), middle), max(float(high), middle)


def _lower_level(series: NDArray[np.float64], confidence: float) -> float | None:
    """Which quantile of the series is the lower limit; None if it is below the smallest value's, ``1 / (R + 1)``."""
    from scipy.stats import t

    rounds = len(series)
    cosines = min(max(round(0.4 * rounds ** (2 / 3)), FEWEST_COSINES), rounds - 1)
    if cosines < 1:
        return None
    below = np.sign(series - np.median(series)) / 2
    phases = np.outer(np.arange(1, cosines + 1), (np.arange(rounds) + 0.5) * (np.pi / rounds))
    variance = 2 / rounds * float(((np.cos(phases) @ below) ** 2).mean())
    level = 0.5 - float(t.ppf((1 + confidence) / 2, cosines)) * math.sqrt(variance / rounds)
    return level if level >= 1 / (rounds + 1) else None
