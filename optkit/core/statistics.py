"""Intervals and tests: accuracies, paired differences of accuracy, ratios of interleaved latencies."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A value with its two-sided 95% interval."""

    value: float
    low: float
    high: float

    @property
    def ci(self) -> list[float]:
        return [self.low, self.high]


@dataclass(frozen=True)
class PairedDifference:
    """How two variants differ on the same test examples.

    Attributes:
        delta: accuracy of the candidate less that of the reference, with its interval.
        p_value: exact McNemar test of "they are right equally often".
        detectable: the smallest difference this many examples would have shown with 80% power.
    """

    delta: Estimate
    p_value: float
    detectable: float


def proportion(successes: int, total: int) -> Estimate:
    """Share of successes with its Wilson score interval (Wilson, 1927)."""
    from scipy.stats import binomtest

    interval = binomtest(successes, total).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(successes / total, float(interval.low), float(interval.high))


def paired_difference(candidate: NDArray[np.bool_], reference: NDArray[np.bool_], seed: int = 0) -> PairedDifference:
    """Paired bootstrap interval and McNemar test of a difference of accuracies.

    Only the examples on which exactly one of the two is right carry information, so the bootstrap draws their
    counts from a multinomial, which is what resampling examples amounts to. One example is added to each of the two
    counts first (Bonett and Price, 2012), without which few disagreements give an interval of no width.

    Args:
        candidate: which examples the candidate got right, ``(N,)``.
        reference: which examples the reference got right, ``(N,)``, the same examples in the same order.
    """
    from scipy.stats import binomtest, norm

    if candidate.shape != reference.shape or candidate.ndim != 1 or not candidate.size:
        raise ValueError(f"paired answers must be two equal, non-empty vectors: {candidate.shape}, {reference.shape}")
    n = candidate.size
    gained, lost = int((candidate & ~reference).sum()), int((~candidate & reference).sum())
    delta = (gained - lost) / n
    shares = np.array([gained + 1, lost + 1, n - gained - lost]) / (n + 2)
    draws = np.random.default_rng(seed).multinomial(n + 2, shares, size=10 * RESAMPLES)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile((draws[:, 0] - draws[:, 1]) / (n + 2), [tail, 1 - tail])
    disagree = gained + lost
    p_value = binomtest(gained, disagree).pvalue if disagree else 1.0
    detectable = (norm.ppf(1 - tail) + norm.ppf(0.8)) * math.sqrt(max(disagree, 1)) / n
    interval = Estimate(delta, float(min(low, delta)), float(max(high, delta)))
    return PairedDifference(interval, float(p_value), float(detectable))


def difference_over_seeds(candidate: NDArray[np.bool_], reference: NDArray[np.bool_]) -> Estimate:
    """Difference of mean accuracies of two arms, each trained from several seeds, judged on the same examples.

    Its variance is that of the examples (paired, averaged over seeds) plus that of the seeds of either arm; the
    interval is Student's with the degrees of freedom of Welch and Satterthwaite, so that few seeds make it wide. An
    arm with one seed is taken as it is: its interval says nothing about other seeds.

    Args:
        candidate: which examples each seed got right, ``(seeds, N)``.
        reference: the same for the other arm; its number of seeds may differ.
    """
    from scipy.stats import t

    if candidate.ndim != 2 or reference.ndim != 2 or candidate.shape[1] != reference.shape[1]:
        raise ValueError(f"answers must be (seeds, N) over the same N: {candidate.shape}, {reference.shape}")
    per_example = candidate.mean(0) - reference.mean(0)
    delta, n = float(per_example.mean()), per_example.size
    parts = [(float(per_example.var(ddof=1)) / n, n - 1)]
    parts += [(float(a.mean(1).var(ddof=1)) / len(a), len(a) - 1) for a in (candidate, reference) if len(a) > 1]
    variance = sum(v for v, _ in parts)
    if variance == 0:
        return Estimate(delta, delta, delta)
    freedom = variance**2 / sum(v**2 / df for v, df in parts)
    half = float(t.ppf(1 - (1 - CONFIDENCE) / 2, freedom)) * math.sqrt(variance)
    return Estimate(delta, delta - half, delta + half)


def median(samples: NDArray[np.float64], seed: int = 0) -> Estimate:
    """Median of latencies ``(rounds, calls)`` with an interval that resamples whole rounds."""
    return _over_rounds(lambda rounds: _median(samples, rounds), len(samples), seed)


def ratio_of_medians(numerator: NDArray[np.float64], denominator: NDArray[np.float64], seed: int = 0) -> Estimate:
    """``median(numerator) / median(denominator)`` of two interleaved series ``(rounds, calls)``.

    Rounds are resampled whole and for both series alike: calls next to each other share the machine's mood (the
    blocks of a block bootstrap), and a drift that moves both series leaves their ratio where it is.
    """
    if len(numerator) != len(denominator):
        raise ValueError(f"interleaved series have the same rounds: {len(numerator)}, {len(denominator)}")
    return _over_rounds(lambda rounds: _median(numerator, rounds) / _median(denominator, rounds), len(numerator), seed)


def _median(samples: NDArray[np.float64], rounds: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.median(samples[rounds].reshape(*rounds.shape[:-1], -1), axis=-1)


def _over_rounds(statistic: Callable[[NDArray[np.int64]], NDArray[np.float64]], num_rounds: int, seed: int) -> Estimate:
    """Percentile bootstrap of a vectorized ``statistic(round indices (..., R)) -> (...)``."""
    rounds = np.arange(num_rounds)
    value = float(statistic(rounds))
    if num_rounds < 2:
        return Estimate(value, value, value)
    draws = np.random.default_rng(seed).integers(0, num_rounds, (RESAMPLES, num_rounds))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(statistic(draws), [tail, 1 - tail])
    return Estimate(value, float(low), float(high))
