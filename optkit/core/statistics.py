"""Intervals and tests: accuracies, paired differences of accuracy, ratios of interleaved latencies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optkit.core.median_interval import median_interval

CONFIDENCE = 0.95
RESAMPLES = 20_000
ROUNDS_BEHIND_AN_ERROR = 30


@dataclass(frozen=True)
class Estimate:
    """A value with its two-sided 95% interval, whose limits are infinite where no interval can be given."""

    value: float
    low: float
    high: float

    @property
    def ci(self) -> list[float] | None:
        """The limits; None where no interval can be given."""
        return [self.low, self.high] if math.isfinite(self.high) else None


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


def paired_difference(
    candidate: NDArray[np.bool_], reference: NDArray[np.bool_], seed: int = 0, *, confidence: float = CONFIDENCE
) -> PairedDifference:
    """Paired bootstrap interval and McNemar test of a difference of accuracies.

    Only the examples on which exactly one of the two is right carry information, so the bootstrap draws their
    counts from a multinomial, which is what resampling examples amounts to. One example is added to each of the two
    counts first (Bonett and Price, 2012), without which few disagreements give an interval of no width.

    Args:
        candidate: which examples the candidate got right, ``(N,)``.
        reference: which examples the reference got right, ``(N,)``, the same examples in the same order.
        seed: of the bootstrap.
        confidence: of the interval.
    """
    from scipy.stats import binomtest, norm

    if candidate.shape != reference.shape or candidate.ndim != 1 or not candidate.size:
        raise ValueError(f"paired answers must be two equal, non-empty vectors: {candidate.shape}, {reference.shape}")
    n = candidate.size
    gained, lost = int((candidate & ~reference).sum()), int((~candidate & reference).sum())
    delta = (gained - lost) / n
    shares = np.array([gained + 1, lost + 1, n - gained - lost]) / (n + 2)
    draws = np.random.default_rng(seed).multinomial(n + 2, shares, size=RESAMPLES)
    tail = (1 - confidence) / 2
    low, high = np.quantile((draws[:, 0] - draws[:, 1]) / (n + 2), [tail, 1 - tail])
    disagree = gained + lost
    p_value = binomtest(gained, disagree).pvalue if disagree else 1.0
    detectable = (norm.ppf((1 + CONFIDENCE) / 2) + norm.ppf(0.8)) * math.sqrt(max(disagree, 1)) / n
    interval = Estimate(delta, float(min(low, delta)), float(max(high, delta)))
    return PairedDifference(interval, float(p_value), float(detectable))


Values = NDArray[np.bool_] | NDArray[np.float64]  # which examples are right, or pseudo-values of another metric


def weighted_metric(weights: Sequence[float], values: Sequence[Values]) -> Estimate:
    """A weighted sum of a metric of variants that were made from the same seeds and judged on the same examples.

    Few disagreements would give an interval of no width, as they would that of a pair. So two examples are added to
    those of every seed, the equivalent of `paired_difference`'s: one that counts for the sum and one that counts
    against it, each as much as examples that count do. The difference of two variants' accuracies of one seed has the
    interval of `paired_difference`.

    Args:
        weights: one a variant.
        values: of the examples of each seed's variant, ``(seeds, N)`` for each weight.
    """
    if not all(of.dtype == np.bool_ for of in values):  # numbers that happen to be 0 and 1 are kept as bits
        values = [of.astype(np.float64) for of in values]
    if len(values[0]) == 1 and sorted(weights) == [-1.0, 1.0] and values[0].dtype == np.bool_:
        reference, candidate = (values[place][0] for place in np.argsort(weights))
        return paired_difference(candidate, reference).delta
    total = np.asarray(sum(w * c.astype(np.float64) for w, c in zip(weights, values, strict=True)))
    most, least = sum(w for w in weights if w > 0), sum(w for w in weights if w < 0)
    extent = max(most, -least)
    otherwise = extent * _most_an_example_counts(values[0])
    unmoved = 0.0 if values[0].dtype == np.bool_ else total.mean()  # what an example that changes nothing has
    added = _typical_count(total.mean(0) - unmoved, otherwise) / extent * np.array([most, least])
    found = mean_over_seeds(np.column_stack((total, unmoved + np.tile(added, (len(total), 1)))))
    return Estimate(float(total.mean()), found.low, found.high)


def _most_an_example_counts(values: Values) -> float:
    """How much one example changes the sum of a metric: 1 of accuracy."""
    return 1.0 if values.dtype == np.bool_ else float(values.std())


def _typical_count(by_example: NDArray[np.float64], otherwise: float) -> float:
    """Root mean square of what examples count that do not count nothing; ``otherwise`` where all do."""
    counting = by_example[np.abs(by_example) > 1e-12]
    return float(np.sqrt((counting**2).mean())) if counting.size else otherwise


def mean_over_seeds(values: NDArray[np.float64]) -> Estimate:
    """Mean of a figure of every seed and test example, with an interval over both.

    Seeds and examples are crossed random effects: the variance of the mean is that of the seeds' means plus that of
    the examples' means, less the residual that both contain; the interval is Student's with Satterthwaite's degrees of
    freedom, so that few seeds make it wide. One seed is taken as it is: its interval says nothing about other seeds.

    Args:
        values: ``(seeds, N)``, every seed judged on the same examples.
    """
    seeds, n = values.shape
    center = float(values.mean())
    by_example, by_seed = values.mean(0), values.mean(1)
    of_examples = float(by_example.var(ddof=1)) / n
    if seeds == 1:
        return _student(center, [(of_examples, n - 1)])
    of_seeds = float(by_seed.var(ddof=1)) / seeds
    rest = values - by_example - by_seed[:, None] + center
    both = float((rest**2).sum()) / ((seeds - 1) * (n - 1)) / values.size
    return _student(center, [(of_examples, n - 1), (of_seeds, seeds - 1), (-both, (seeds - 1) * (n - 1))])


def difference_over_seeds(candidate: Values, reference: Values) -> Estimate:
    """Difference of a metric's means of two arms, each trained from several seeds, judged on the same examples.

    Its variance is that of the examples (paired, averaged over seeds) plus that of the seeds of either arm; the
    interval is Student's with the degrees of freedom of Welch and Satterthwaite, so that few seeds make it wide. An
    arm with one seed is taken as it is: its interval says nothing about other seeds. As in `weighted_metric`, one
    example that counts is added each way, and of accuracies of one seed each the interval is that of
    `paired_difference`.

    Args:
        candidate: values of the examples of each seed, ``(seeds, N)``.
        reference: the same for the other arm; its number of seeds may differ.
    """
    if candidate.ndim != 2 or reference.ndim != 2 or candidate.shape[1] != reference.shape[1]:
        raise ValueError(f"answers must be (seeds, N) over the same N: {candidate.shape}, {reference.shape}")
    is_share = candidate.dtype == reference.dtype == np.bool_
    if len(candidate) == len(reference) == 1 and is_share:
        return paired_difference(candidate[0], reference[0]).delta
    per_example = candidate.mean(0) - reference.mean(0)
    unmoved = 0.0 if is_share else float(per_example.mean())
    more = _typical_count(per_example - unmoved, _most_an_example_counts(reference))
    extended = np.append(per_example, [unmoved + more, unmoved - more])
    n = extended.size
    parts = [(float(extended.var(ddof=1)) / n, n - 1)]
    parts += [(float(a.mean(1).var(ddof=1)) / len(a), len(a) - 1) for a in (candidate, reference) if len(a) > 1]
    found = _student(float(extended.mean()), parts)
    return Estimate(float(per_example.mean()), found.low, found.high)


def _student(center: float, parts: Sequence[tuple[float, int]]) -> Estimate:
    """Interval from components of variance and their degrees of freedom (Satterthwaite, 1946); never below one part."""
    from scipy.stats import t

    variance = max(sum(v for v, _ in parts), *(v for v, _ in parts), 0.0)
    if variance == 0:
        return Estimate(center, center, center)
    if math.isinf(variance):
        return Estimate(center, -math.inf, math.inf)
    freedom = max(variance**2 / sum(v**2 / df for v, df in parts), 1.0)
    half = float(t.ppf(1 - (1 - CONFIDENCE) / 2, freedom)) * math.sqrt(variance)
    return Estimate(center, center - half, center + half)


def median(samples: NDArray[np.float64]) -> Estimate:
    """Median latency ``(rounds, calls)``: the median over rounds of each round's median.

    The limits of its interval are within those of the rounds' medians. There is no interval where rounds are too few.
    """
    return Estimate(*median_interval(np.median(samples, axis=1), CONFIDENCE))


def ratio_of_medians(
    numerator: NDArray[np.float64], denominator: NDArray[np.float64], *, confidence: float = CONFIDENCE
) -> Estimate:
    """How many times the median latency of one series is that of another, interleaved with it, ``(rounds, calls)``.

    The ratio of the two medians is taken in each round, and the median over rounds: a drift that slows both series in a
    round leaves their ratio unchanged. The limits of the interval are within the rounds' ratios. Where rounds are too
    few for an interval, they are 0 and infinite.
    """
    if len(numerator) != len(denominator):
        raise ValueError(f"interleaved series have the same rounds: {len(numerator)}, {len(denominator)}")
    ratios = np.median(numerator, axis=1) / np.median(denominator, axis=1)
    found = Estimate(*(math.exp(x) for x in median_interval(np.log(ratios), confidence)))
    if found.ci is None:
        return found
    # exp(log(x)) may differ from x in its last bit
    smallest, largest = float(ratios.min()), float(ratios.max())
    return Estimate(*(min(max(x, smallest), largest) for x in (found.value, found.low, found.high)))


def quotient(numerator: Estimate, denominator: Estimate) -> Estimate:
    """One ratio over another that is independent of it: the widths of their logarithms are added in quadrature.

    There is an interval if both have one.
    """
    value = numerator.value / denominator.value
    if numerator.ci is None or denominator.ci is None:
        return Estimate(value, 0.0, math.inf)
    below = math.hypot(math.log(numerator.value / numerator.low), math.log(denominator.high / denominator.value))
    above = math.hypot(math.log(numerator.high / numerator.value), math.log(denominator.value / denominator.low))
    return Estimate(value, value * math.exp(-below), value * math.exp(above))


def log_error(ratio: Estimate) -> float:
    """Standard error of a ratio's logarithm, read off its interval; infinite if it has none."""
    return math.log(ratio.high / ratio.low) / (2 * _normal_quantile(CONFIDENCE)) if ratio.ci else math.inf


def detectable_ratio(ratio: Estimate) -> float:
    """The smallest ratio above 1 that a measurement with this interval would have shown with 80% power."""
    return math.exp((_normal_quantile(CONFIDENCE) + _normal_quantile(2 * 0.8 - 1)) * log_error(ratio))


def _normal_quantile(confidence: float) -> float:
    """How many standard errors reach this far to both sides of a normal estimate."""
    from scipy.stats import norm

    return float(norm.ppf((1 + confidence) / 2))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for being so many (Holm, 1979): the chance of any false call stays below the level."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def mean_with_errors(values: NDArray[np.float64], errors: NDArray[np.float64]) -> Estimate:
    """Mean over seeds of a figure that is itself measured with an error.

    What seeds differ by holds their errors too, so that Student's interval of the values is all there is to it; of two
    seeds it is very wide. One seed is taken as it is: its interval says nothing about other seeds.

    Args:
        values: one figure a seed, ``(seeds,)``.
        errors: the standard error of each; infinite where it is not known.
    """
    seeds = len(values)
    if seeds == 1:
        return _student(float(values[0]), [(float(errors[0]) ** 2, ROUNDS_BEHIND_AN_ERROR)])
    return _student(float(values.mean()), [(float(values.var(ddof=1)) / seeds, seeds - 1)])
