"""Simulated experiments on metrics whose truth is known, for `scripts/statistics_coverage.py`.

An experiment draws the examples of a split as a baseline and a candidate answer them. The truth of each metric is its
value over 300,000 examples of the same kind. `metric_value` asks for the candidate's interval, `metric_delta` for that
of the paired difference.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import numpy as np

from optkit.core.metric import Metric
from optkit.core.statistics import Estimate
from optkit.metrics.classification import BalancedAccuracy, MacroF1
from optkit.metrics.language import Perplexity
from optkit.metrics.multilabel import MultilabelF1, MultilabelMAP
from optkit.metrics.regression import R2, MeanAbsoluteError, RootMeanSquareError
from optkit.metrics.retrieval import RecallAtK
from optkit.metrics.segmentation import MeanIoU

Tables = tuple[np.ndarray, np.ndarray]
Draw = Callable[[np.random.Generator, int], Tables]
MANY = 300_000


def labels(random: np.random.Generator, n: int) -> Tables:
    """Six classes of 40% to 4% of the examples, right in 97% to 70%; the candidate changes 3% of the answers."""
    shares, right = np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04]), np.linspace(0.97, 0.7, 6)
    target, hardness = random.choice(6, n, p=shares), random.random(n)

    def table(worse: float, changed: float) -> np.ndarray:
        is_right = (hardness < right[target] - worse) ^ (random.random(n) < changed)
        found = np.where(is_right, target, (target + random.integers(1, 6, n)) % 6)
        eye = np.eye(6)
        return np.concatenate([eye[target], eye[found], eye[target] * eye[found]], axis=1)

    return table(0, 0), table(0.01, 0.03)


def masks(random: np.random.Generator, n: int) -> Tables:
    """Five classes, each in 100% to 10% of the images, of lognormal areas and an overlap of each image and class."""
    area = (random.random((n, 5)) < [1, 0.5, 0.3, 0.2, 0.1]) * random.lognormal(6, 0.8, (n, 5))
    overlap = np.clip(1 - random.gamma(1.5, 0.08, (n, 5)), 0.05, 1)

    def table(overlap: np.ndarray) -> np.ndarray:
        both = area * overlap
        return np.concatenate([area, both + area * (1 - overlap) * random.random((n, 5)), both], axis=1)

    return table(overlap), table(np.clip(overlap - np.abs(random.normal(0.01, 0.02, (n, 5))), 0.01, 1))


def errors(random: np.random.Generator, n: int) -> Tables:
    """Errors of Student's distribution with 8 degrees of freedom; the candidate's are 1% larger, and noisier."""
    error = random.standard_t(8, n)
    return np.abs(error)[:, None], np.abs(1.01 * error + 0.02 * random.standard_normal(n))[:, None]


def squares(random: np.random.Generator, n: int) -> Tables:
    """The squares of `errors`."""
    ours, theirs = errors(random, n)
    return ours**2, theirs**2


def numbers(random: np.random.Generator, n: int) -> Tables:
    """Normal targets, and errors of a third of their spread."""
    target, error = random.standard_normal(n), 0.4 * random.standard_t(8, n)
    other = 1.01 * error + 0.02 * random.standard_normal(n)
    ours, theirs = (np.stack([e**2, target, target**2], axis=1) for e in (error, other))
    return ours, theirs


def several_labels(random: np.random.Generator, n: int) -> Tables:
    """Four labels of 40% to 4% of the examples, and logits that know them; the candidate's are noisier."""
    target = (random.random((n, 4)) < np.geomspace(0.4, 0.04, 4)).astype(float)
    logits = 1.8 * target - 0.5 + random.standard_normal((n, 4))
    other = logits + 0.3 * random.standard_normal((n, 4)) - 0.02 * target
    ours, theirs = (np.concatenate([x, target], axis=1) for x in (logits, other))
    return ours, theirs


def found_labels(random: np.random.Generator, n: int) -> Tables:
    """`several_labels`, each found where its logit is above 0.3."""

    def table(both: np.ndarray) -> np.ndarray:
        logits, target = both[:, :4], both[:, 4:]
        return np.concatenate([target, logits > 0.3, target * (logits > 0.3)], axis=1)

    ours, theirs = several_labels(random, n)
    return table(ours), table(theirs)


def embeddings(random: np.random.Generator, n: int) -> Tables:
    """Classes of eight examples on average, as clusters of different width; the candidate's embeddings are noisier."""
    label = random.integers(0, n // 8, n)
    center, width = random.standard_normal((n // 8, 16)), random.uniform(0.4, 1.6, n // 8)
    found = center[label] + width[label, None] * random.standard_normal((n, 16))

    def table(x: np.ndarray) -> np.ndarray:
        return np.concatenate([label[:, None], x / np.linalg.norm(x, axis=1, keepdims=True)], axis=1)

    return table(found), table(found + 0.2 * random.standard_normal((n, 16)))


def blocks(random: np.random.Generator, n: int, memory: float) -> Tables:
    """Blocks of 255 tokens of which neighbours are alike; the candidate's losses are 3% higher, and noisier.

    Args:
        memory: correlation of the losses of neighbouring blocks.
    """
    from scipy.signal import lfilter

    def alike() -> np.ndarray:
        noise = random.standard_normal(n)
        noise[1:] *= np.sqrt(1 - memory**2)
        return lfilter([1.0], [1.0, -memory], noise)

    loss = 3 + 0.35 * alike()
    other = 1.03 * loss + 0.03 * alike()
    ours, theirs = (np.stack([255 * x, np.full(n, 255.0)], axis=1) for x in (loss, other))
    return ours, theirs


# metric, how its tables are drawn, and the fewest and most examples of an experiment
METRICS: dict[str, tuple[Metric, Draw, int, int]] = {
    "balanced_accuracy": (BalancedAccuracy(), labels, 300, 3000),
    "macro_f1": (MacroF1(), labels, 300, 3000),
    "mean_iou": (MeanIoU(5), masks, 60, 1000),
    "mae": (MeanAbsoluteError(), errors, 100, 1000),
    "rmse": (RootMeanSquareError(), squares, 100, 1000),
    "r2": (R2(), numbers, 100, 1000),
    "multilabel_f1": (MultilabelF1(4), found_labels, 200, 2000),
    "multilabel_map": (MultilabelMAP(4), several_labels, 300, 500),
    "recall_at_1": (RecallAtK(1), embeddings, 400, 401),
    "perplexity": (Perplexity(), partial(blocks, memory=0.0), 100, 400),
    "perplexity_alike": (Perplexity(), partial(blocks, memory=0.6), 100, 400),
}


def metric_value(random: np.random.Generator, name: str) -> tuple[Estimate, float]:
    """The interval of a candidate's metric, and its truth."""
    metric, draw, least, most = METRICS[name]
    _, candidate = draw(random, int(random.integers(least, most)))
    return metric.interval(candidate), _truth(name)[1]


def metric_delta(random: np.random.Generator, name: str) -> tuple[Estimate, float]:
    """The interval of a paired difference, and its truth."""
    metric, draw, least, most = METRICS[name]
    baseline, candidate = draw(random, int(random.integers(least, most)))
    before, after = _truth(name)
    return metric.difference(candidate, baseline).delta, after - before


@cache
def _truth(name: str) -> tuple[float, float]:
    """The metric of baseline and candidate: of very many examples, or, where it depends on how many, over 200 draws."""
    metric, draw, least, _ = METRICS[name]
    if isinstance(metric, RecallAtK):
        draws = [draw(np.random.default_rng([1, number]), least) for number in range(200)]
        return tuple(float(np.mean([metric.value(tables[side]) for tables in draws])) for side in (0, 1))  # type: ignore[return-value]
    baseline, candidate = draw(np.random.default_rng(1), MANY)
    return metric.value(baseline), metric.value(candidate)
