"""Accuracy on the engine: the session that is timed answers the whole split."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optkit.core.engine import Session
from optkit.core.progress import track
from optkit.core.records import Measurement, pack_bits
from optkit.core.statistics import proportion
from optkit.core.task import Task


def answers(session: Session, task: Task, split: str, batch_size: int) -> NDArray[np.bool_]:
    """Which examples of a split the session gets right, ``(N,)``, in the split's order.

    The last batch is filled up with repeats, whose answers are dropped: the kernels that are timed give all answers.
    """
    found = []
    total = -(-task.size(split) // batch_size)
    for batch in track(task.batches(split, batch_size), f"accuracy on {split}", total):
        logits = session(*(_filled(x, batch_size) for x in batch.inputs))[: len(batch)]
        found.append(task.correct(logits.float(), batch).cpu().numpy())
    return np.concatenate(found)


def _filled(x: Tensor, batch_size: int) -> Tensor:
    missing = batch_size - len(x)
    return x if missing == 0 else torch.cat([x, x[-1:].expand(missing, *x.shape[1:])])


def measure_accuracy(session: Session, task: Task, split: str, batch_size: int, conditions: dict) -> Measurement:
    """The task's metric with its Wilson interval; raw keeps which examples were right."""
    correct = answers(session, task, split, batch_size)
    interval = proportion(int(correct.sum()), len(correct))
    return Measurement(
        "accuracy",
        task.metric(correct),
        ci=interval.ci,
        n=len(correct),
        conditions=conditions | {"split": split},
        raw=pack_bits(correct),
    )
