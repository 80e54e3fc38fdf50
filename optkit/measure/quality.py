"""Quality on the engine: the session that is timed answers the whole split, which the task's metrics are taken of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from optkit.core.engine import Session
from optkit.core.metric import observed, stacked
from optkit.core.progress import track
from optkit.core.records import Measurement, Quality, pack_values
from optkit.core.structure import as_float, mapped
from optkit.core.task import Task


def measure_quality(
    session: Session, task: Task, split: str, batch_size: int, conditions: dict[str, Any]
) -> list[Measurement]:
    """Each of the task's metrics on a split, with its interval; raw keeps what each example adds to it.

    The last batch is filled up with repeats, whose answers are dropped: the kernels that are timed give all answers.
    """
    tables: list[list[Any]] = [[] for _ in task.metrics]
    for batch in track(task.batches(split, batch_size), f"answers on {split}", -(-task.size(split) // batch_size)):
        filled = replace(batch, inputs=tuple(_filled(x, batch_size) for x in batch.inputs))
        output = as_float(task.forward(session, filled))  # type: ignore[arg-type]
        if len(batch) < batch_size:
            output = _first(output, len(batch), batch_size)
        for metric, table in zip(task.metrics, tables, strict=True):
            table.append(observed(metric, output, batch))
    found = []
    for place, metric in enumerate(task.metrics):
        whole = stacked(tables[place])
        pseudo = metric.pseudo_values(whole)
        interval = metric.interval(whole, pseudo)
        about = Quality(metric.kind, metric.higher_is_better, primary=place == 0)
        # without the jackknife's correction of bias, so that their mean is the metric
        raw = pack_values(pseudo - pseudo.mean() + interval.value)
        where = conditions | {"split": split}
        found.append(
            Measurement(metric.name, interval.value, metric.unit, interval.ci, len(whole), where, raw, quality=about)
        )
    return found


def _filled(x: Tensor, batch_size: int) -> Tensor:
    missing = batch_size - len(x)
    return x if missing == 0 else torch.cat([x, x[-1:].expand(missing, *x.shape[1:])])


def _first(output: Any, count: int, batch_size: int) -> Any:
    """The output for the first examples of a batch: of each tensor with a row an example, and of lists of them."""
    if isinstance(output, list) and len(output) == batch_size:
        return output[:count]
    return mapped(output, lambda x: x[:count] if x.dim() and len(x) == batch_size else x)
