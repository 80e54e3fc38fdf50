"""Intervals of any metric, from how much each example moves it.

The jackknife pseudo-value of an example is ``n * value(all) - (n - 1) * value(all but it)`` (Tukey, 1958). For a mean
it is the example's own figure. The mean of the pseudo-values is the metric, less its bias. Their variance over ``n``
estimates the metric's variance. So one set of formulas serves every metric, alone, paired, and over seeds.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from optkit.core.statistics import CONFIDENCE, Estimate, PairedDifference

POWER = 0.8


def interval_of_share(value: float, pseudo: NDArray[np.float64]) -> Estimate:
    """Interval of a metric between 0 and 1: Wilson's, with the sample size that the pseudo-values' variance stands for.

    A share of ``n`` independent successes has the variance ``value * (1 - value) / n``. The effective sample size is
    the ``n`` that gives this metric's variance (Korn and Graubard, Survey Methodology, 1998). For accuracy it is the
    number of examples, and the interval is Wilson's own.

    Args:
        value: the metric.
        pseudo: its pseudo-values, ``(n,)``.
    """
    n = len(pseudo)
    spread, variance = value * (1 - value), _variance_of_mean(pseudo)
    size = spread / variance if spread > 0 and 0 < variance < math.inf else float(n)
    z2 = _quantile(pseudo) ** 2
    center = (value + z2 / (2 * size)) / (1 + z2 / size)
    half = math.sqrt(z2 / size * (spread + z2 / (4 * size))) / (1 + z2 / size)
    return Estimate(value, min(max(center - half, 0.0), value), max(min(center + half, 1.0), value))


def interval_of_error(value: float, pseudo: NDArray[np.float64]) -> Estimate:
    """Interval of a metric that is never below 0, such as a mean error: Student's, of its logarithm.

    There is none (0 to infinity) where the value is 0.
    """
    if value <= 0:
        return Estimate(value, 0.0, math.inf)
    half = _quantile(pseudo) * math.sqrt(_variance_of_mean(pseudo)) / value
    return Estimate(value, value * math.exp(-half), value * math.exp(half) if half < 700 else math.inf)


def interval_of_any(value: float, pseudo: NDArray[np.float64]) -> Estimate:
    """Interval of a metric without limits: Student's."""
    half = _quantile(pseudo) * math.sqrt(_variance_of_mean(pseudo))
    return Estimate(value, value - half, value + half)


def paired_metric_difference(
    delta: float, ours: NDArray[np.float64], theirs: NDArray[np.float64], confidence: float = CONFIDENCE
) -> PairedDifference:
    """How a metric differs between two variants, from pseudo-values on the same examples.

    Few differing examples would give an interval of no width. So, unless all differ, two examples are added, one that
    counts for and one against the candidate, each as much as a differing example does (as Bonett and Price, 2012, add
    them for shares).

    Args:
        delta: the candidate's metric less the reference's.
        ours: the candidate's pseudo-values, ``(n,)``.
        theirs: the reference's, of the same examples in the same order.
        confidence: of the interval.

    Raises:
        ValueError: two vectors of different lengths.
    """
    from scipy.stats import norm, t

    if ours.shape != theirs.shape or ours.ndim != 1 or not ours.size:
        raise ValueError(f"paired pseudo-values must be two equal, non-empty vectors: {ours.shape}, {theirs.shape}")
    extended = _differences(ours, theirs)
    error = math.sqrt(_variance_of_mean(extended))
    if error == 0:
        return PairedDifference(Estimate(delta, delta, delta), 1.0 if delta == 0 else 0.0, 0.0)
    half = _quantile(extended, confidence) * error
    p_value = float(2 * t.sf(abs(delta) / error, _freedom(extended)))
    detectable = (norm.ppf((1 + CONFIDENCE) / 2) + norm.ppf(POWER)) * error
    return PairedDifference(Estimate(delta, delta - half, delta + half), p_value, float(detectable))


def loss_within_p(loss: float, ours: NDArray[np.float64], theirs: NDArray[np.float64], tolerance: float) -> float:
    """p-value of "the loss is at least `tolerance`", against "it is smaller": Student's test, one-sided.

    Args:
        loss: by how much the candidate's metric is worse.
        ours, theirs: as for `paired_metric_difference`.
        tolerance: in the unit of the metric.
    """
    from scipy.stats import t

    extended = _differences(ours, theirs)
    error = math.sqrt(_variance_of_mean(extended))
    if error == 0:
        return 0.0 if loss < tolerance else 1.0
    return float(t.cdf((loss - tolerance) / error, _freedom(extended)))


def _differences(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Differences of pseudo-values about their mean; behind them two that are added, unless all examples differ.

    Each counts as much as a differing example does, by their root mean square, or that of the reference's about their
    mean if none differs.
    """
    moved = ours - theirs
    differing = moved[np.abs(moved) > 1e-12 * max(1.0, float(np.abs(theirs).max()))]
    if differing.size == moved.size > 1:
        return moved - moved.mean()
    found = differing if differing.size else theirs - theirs.mean()
    counts = float(np.sqrt((found**2).mean()))
    return np.append(moved - moved.mean(), [counts, -counts])


def _variance_of_mean(values: NDArray[np.float64]) -> float:
    return float(values.var(ddof=1)) / len(values) if len(values) > 1 else math.inf


def _quantile(values: NDArray[np.float64], confidence: float = CONFIDENCE) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + confidence) / 2, _freedom(values)))


def _freedom(values: NDArray[np.float64]) -> float:
    """Degrees of freedom of the values' variance: fewer where few of the values decide it (Satterthwaite, 1946).

    The variance of ``n`` values of kurtosis ``k`` is as uncertain as that of ``2 n / (k - 1)`` normal ones.
    """
    n = len(values)
    centered = values - values.mean()
    square = float((centered**2).mean())
    if n < 2 or square == 0:
        return 1.0
    kurtosis = float((centered**4).mean()) / square**2
    return float(min(n - 1, max(2 * n / max(kurtosis - 1, 1e-9), 1.0)))
