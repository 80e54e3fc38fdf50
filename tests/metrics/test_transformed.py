import numpy as np
import torch

from optkit.core.task import Batch
from optkit.metrics.classification import Accuracy
from optkit.metrics.regression import MeanAbsoluteError
from optkit.metrics.transformed import Transformed


def test_the_metric_sees_what_the_function_makes_of_both():
    metric = Transformed(MeanAbsoluteError("cm"), lambda output, targets: (10 * output, 10 * targets + 1))
    output, targets = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.5], [2.0]])
    assert metric.observe(output, Batch((), targets, torch.arange(2))).tolist() == [[6], [1]]
    assert (metric.name, metric.unit, metric.kind, metric.higher_is_better) == ("mae", "cm", "error", False)


def test_values_intervals_and_differences_are_the_metrics_own():
    own, random = Accuracy(), np.random.default_rng(0)
    metric = Transformed(own, lambda output, targets: (output, targets))
    ours, theirs = (random.integers(0, 2, (40, 1)).astype(float) for _ in range(2))
    assert metric.value(ours) == own.value(ours)
    assert metric.interval(ours) == own.interval(ours)
    assert metric.difference(ours, theirs) == own.difference(ours, theirs)
    assert np.array_equal(metric.pseudo_values(ours), own.pseudo_values(ours))
