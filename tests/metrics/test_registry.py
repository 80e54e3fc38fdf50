"""Metrics by name, by dotted path, and as functions."""

import pytest

from optkit.core.errors import UserError
from optkit.metrics.classification import Accuracy
from optkit.metrics.registry import METRICS, resolve_metrics

KNOWN = {"classes": 3, "labels": 3}


def closeness(outputs, targets):
    return -(outputs - targets).abs()


@pytest.mark.parametrize("name", METRICS)
def test_every_name_is_a_metric(name):
    (metric,) = resolve_metrics(name, **KNOWN)
    assert metric.name
    assert metric.kind in ("share", "error", "any")


def test_names_dotted_paths_functions_and_metrics():
    dotted = f"{__name__}.closeness"
    found = resolve_metrics(["accuracy", dotted, Accuracy(top=3)])
    assert [metric.name for metric in found] == ["accuracy", "closeness", "top3_accuracy"]


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ("acuracy", "did you mean 'accuracy'"),
        ("tests.metrics.test_registry.closenes", "did you mean 'closeness'"),
        ([], "no metric is named"),
        (["accuracy", "accuracy"], "two metrics are called 'accuracy'"),
        ([3], "int is no metric"),
    ],
)
def test_what_is_no_metric(metrics, message):
    with pytest.raises(UserError, match=message):
        resolve_metrics(metrics)
