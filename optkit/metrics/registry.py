"""Metrics by name, and by dotted path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from optkit.core.errors import UserError
from optkit.core.instantiate import check_part, locate
from optkit.core.metric import Metric
from optkit.metrics.functions import MeanScore

# the class of each, its module in optkit.metrics, and what it is made with
METRICS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "accuracy": ("classification", "Accuracy", {}),
    "top3_accuracy": ("classification", "Accuracy", {"top": 3}),
    "top5_accuracy": ("classification", "Accuracy", {"top": 5}),
    "balanced_accuracy": ("classification", "BalancedAccuracy", {}),
    "macro_f1": ("classification", "MacroF1", {}),
    "mean_iou": ("segmentation", "MeanIoU", {}),
    "coco_map": ("detection", "CocoMAP", {}),
    "mae": ("regression", "MeanAbsoluteError", {}),
    "rmse": ("regression", "RootMeanSquareError", {}),
    "r2": ("regression", "R2", {}),
    "multilabel_f1": ("multilabel", "MultilabelF1", {}),
    "multilabel_map": ("multilabel", "MultilabelMAP", {}),
    "perplexity": ("language", "Perplexity", {}),
    "bits_per_byte": ("language", "BitsPerByte", {}),
    "next_token_accuracy": ("language", "NextTokenAccuracy", {}),
    "acc": ("language", "ChoiceAccuracy", {}),
    "acc_norm": ("language", "ChoiceAccuracy", {"normalized": True}),
    "recall@1": ("retrieval", "RecallAtK", {}),
    "recall@5": ("retrieval", "RecallAtK", {"k": 5}),
}


def resolve_metrics(metrics: str | Metric | Callable[..., Any] | Sequence[Any], **known: Any) -> tuple[Metric, ...]:
    """Metrics that are given as names of `METRICS`, as dotted paths, as metrics, or as functions.

    Args:
        metrics: one of these or several. A function takes the output and the targets of a batch, and gives a number for
            each example ``(N,)``.
        known: what a metric may ask of its task, such as ``classes``.

    Raises:
        UserError: there is no metric of that name, none at all, or the same one twice.
    """
    several = metrics if isinstance(metrics, Sequence) and not isinstance(metrics, str) else [metrics]
    found = tuple(_resolve(one, known) for one in several)
    if not found:
        raise UserError("no metric is named", key="metrics", fix=f"name one: {', '.join(METRICS)}")
    names = [metric.name for metric in found]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two metrics are called '{name}'", key="metrics", value=name, fix="leave one out")
    return found


def _resolve(metric: Any, known: dict[str, Any]) -> Metric:
    if isinstance(metric, str):
        if metric in METRICS:
            module, name, given = METRICS[metric]
            kind = getattr(import_module(f"optkit.metrics.{module}"), name)
            takes = kind.__dataclass_fields__
            return kind(**given, **{name: value for name, value in known.items() if name in takes})
        check_part(metric, METRICS, "metrics", "metric")
        metric = locate(metric, "metrics")
    if isinstance(metric, type) and issubclass(metric, Metric):
        metric = metric()
    if isinstance(metric, Metric):
        return metric
    if callable(metric):
        return MeanScore(metric, name=getattr(metric, "__name__", "score"))
    fix = "a name, a dotted path, a metric, or a function of outputs and targets"
    raise UserError(f"{type(metric).__name__} is no metric", key="metrics", value=str(metric), fix=fix)
