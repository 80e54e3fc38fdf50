"""Quality on the engine: the session that is timed answers the whole split, which the task's metrics are taken of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optkit.core.engine import Session
from optkit.core.errors import StageError
from optkit.core.metric import Metric, observed, stacked
from optkit.core.progress import track
from optkit.core.records import ANSWERS, Measurement, Quality, pack_classes, pack_values
from optkit.core.structure import as_float, mapped
from optkit.core.task import CLASSES, AlsoMeasured, Evaluation
from optkit.core.turns import give_way


def measure_quality(
    session: Session, task: Evaluation, split: str, batch_size: int, conditions: dict[str, Any], *, first: bool = True
) -> list[Measurement]:
    """Each of the task's metrics on a split, with its interval; raw keeps what each example adds to it.

    The classes that a classifier answers with follow (`ANSWERS`), and what the task is measured on as well. The last
    batch is filled up with repeats, whose answers are dropped: the kernels that are timed give all answers.
    """
    tables: list[list[Any]] = [[] for _ in task.metrics]
    classes: list[NDArray[np.int64]] = []
    for batch in track(task.batches(split, batch_size), f"answers on {split}", -(-task.size(split) // batch_size)):
        give_way()
        filled = replace(batch, inputs=tuple(_filled(x, batch_size) for x in batch.inputs))
        output = as_float(task.forward(session, filled))  # type: ignore[arg-type]
        if len(batch) < batch_size:
            output = _first(output, len(batch), batch_size)
        for metric, table in zip(task.metrics, tables, strict=True):
            table.append(observed(metric, output, batch))
        if first and getattr(task, "output_kind", None) == CLASSES and isinstance(output, Tensor):
            classes.append(output.argmax(-1).cpu().numpy())
    where = conditions | {"split": split}
    found = [
        of_metric(metric, stacked(tables[place]), where, primary=first and place == 0)
        for place, metric in enumerate(task.metrics)
    ]
    if classes:
        answers = np.concatenate(classes)
        found.append(Measurement(ANSWERS, None, n=len(answers), conditions=where, raw=pack_classes(answers)))
    others = task.also if isinstance(task, AlsoMeasured) else ()
    return found + [
        m for one in others for m in measure_quality(session, one, split, batch_size, conditions, first=False)
    ]


def of_metric(metric: Metric, table: NDArray[np.float64], conditions: dict[str, Any], *, primary: bool) -> Measurement:
    """A metric with its interval; raw keeps what each example adds to it.

    Args:
        metric: of quality.
        table: what it keeps of the examples, ``(N, k)``.
        conditions: of the measurement.
        primary: whether verdicts use it.

    Raises:
        StageError: it has no value for these outputs, or would have none without one of the examples.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        pseudo = metric.pseudo_values(table)
        interval = metric.interval(table, pseudo)
    if not (np.isfinite(interval.value) and np.isfinite(pseudo).all()):
        without = "" if np.isnan(interval.value) else " without some of the examples"
        message = f"the metric '{metric.name}' is not a number{without} on {conditions.get('split')}"
        fix = "give it a value for all outputs, or measure on more examples"
        raise StageError(message, key="task.metrics", fix=fix)
    about = Quality(metric.kind, metric.higher_is_better, primary)
    # without the jackknife's correction of bias, so that their mean is the metric
    raw = pack_values(pseudo - pseudo.mean() + interval.value)
    return Measurement(metric.name, interval.value, metric.unit, interval.ci, len(table), conditions, raw, about)


def _filled(x: Tensor, batch_size: int) -> Tensor:
    missing = batch_size - len(x)
    return x if missing == 0 else torch.cat([x, x[-1:].expand(missing, *x.shape[1:])])


def _first(output: Any, count: int, batch_size: int) -> Any:
    """The output for the first examples of a batch: of each tensor with a row an example, and of lists of them."""
    if isinstance(output, list) and len(output) == batch_size:
        return output[:count]
    return mapped(output, lambda x: x[:count] if x.dim() and len(x) == batch_size else x)
