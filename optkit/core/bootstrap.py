"""Block bootstrap of a series of timed rounds: neighbouring rounds share the machine's mood, and count for less."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LARGEST_DECAY = 0.85

Statistic = Callable[[NDArray[np.int64]], NDArray[np.float64]]


def block_bootstrap(
    series: NDArray[np.float64], statistic: Statistic, confidence: float, seed: int = 0
) -> tuple[float, float, float]:
    """Value and interval of a statistic of rounds, by a circular block bootstrap (Politis and Romano, 1992).

    Blocks are as long as the series' own autocorrelation asks for (Andrews, 1991). Few blocks show too little of that
    correlation and of the spread: the interval is widened by what a short block misses, and by Student's factor.

    Args:
        series: one figure a round, ``(R,)``: what the statistic is mostly moved by.
        statistic: vectorized, round numbers ``(..., R)`` to values ``(...)``.
        confidence: of the two-sided interval.
        seed: of the resampling.

    Returns:
        The statistic of all rounds, and the interval's ends. One round has an interval of no width.
    """
    from scipy.stats import norm, t

    rounds = len(series)
    value = float(statistic(np.arange(rounds)))
    if rounds < 2:
        return value, value, value
    memory = _Memory.of(series)
    length = memory.block_length(rounds)
    starts = np.random.default_rng(seed).integers(0, rounds, (RESAMPLES, -(-rounds // length)))
    draws = ((starts[:, :, None] + np.arange(length)) % rounds).reshape(RESAMPLES, -1)[:, :rounds]
    tail = (1 - confidence) / 2
    low, high = np.quantile(statistic(draws), [tail, 1 - tail])
    independent = max(rounds / max(memory.inflation, length), 3.0)
    wider = memory.missed_by(length) * t.ppf(1 - tail, independent - 1) / norm.ppf(1 - tail)
    return value, float(value - wider * (value - low)), float(value + wider * (high - value))


@dataclass(frozen=True)
class _Memory:
    """Autocorrelation of a stationary series: ``first`` at lag 1, times ``decay`` for each further lag.

    This is an autoregressive drift under white noise, which is how a machine's mood looks through single calls. Few
    rounds tell little of it, and too little memory makes intervals that leave out the truth: what is estimated is taken
    one standard error higher.
    """

    first: float
    decay: float

    @classmethod
    def of(cls, series: NDArray[np.float64]) -> _Memory:
        rounds, away = len(series), series - series.mean()
        power = float(away @ away)
        if power == 0 or rounds < 4:
            return cls(0.0, 0.0)
        # an estimated autocorrelation is biased down by about (1 + 3r) / R (Kendall, 1954)
        one, two = (float(away[:-k] @ away[k:]) / power for k in (1, 2))
        one, two = (r + (1 + 3 * r) / rounds + 1 / np.sqrt(rounds) for r in (one, two))
        decay = max(one, 0.0)
        if one > 1 / np.sqrt(rounds):
            decay = max(decay, two / one)
        return cls(float(np.clip(one, 0, 1)), float(min(decay, LARGEST_DECAY)))

    @property
    def inflation(self) -> float:
        """How many times the variance of a mean is that of as many independent rounds."""
        return 1 + 2 * self.first / (1 - self.decay)

    def block_length(self, rounds: int) -> int:
        """The block length that is best for the variance of a mean, at most a quarter of the series."""
        if self.decay == 0:
            return 1
        best = (6**0.5 * self.decay / (1 - self.decay**2)) ** (2 / 3) * rounds ** (1 / 3)
        return int(np.clip(np.ceil(best), 1, max(rounds // 4, 1)))

    def missed_by(self, length: int) -> float:
        """By what the spread is greater than blocks of this length show."""
        lags = np.arange(1, length)
        shown = 1 + 2 * float(((1 - lags / length) * self.first * self.decay ** (lags - 1.0)).sum())
        return float(np.sqrt(max(self.inflation / shown, 1.0)))
