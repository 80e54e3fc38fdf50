"""The validation metric's table during a training, each process with its share of every batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from optkit.core.errors import StageError
from optkit.core.metric import observed
from optkit.core.sharding import in_order
from optkit.core.structure import as_float
from optkit.core.task import TOKENS, Task
from optkit.training.replicas import Replica
from optkit.training.shares import read_shares


def validate(
    replica: Replica, task: Task, trained_at_once: int, device: torch.device, between: Callable[[], None]
) -> NDArray[np.float64]:
    """What the task's first metric keeps of the validation split, ``(N, k)``, in its order, the same in all processes.

    Args:
        replica: in eval mode.
        task: of the training.
        trained_at_once: examples that all processes handle at once in training.
        device: of the replica.
        between: called after every batch.

    Raises:
        StageError: an example was counted twice, or not at all.
    """
    processes, metric = replica.processes, task.metrics[0]
    # logits of a whole vocabulary at every token take as much memory as the training step
    larger = 1 if task.output_kind == TOKENS else 4
    tables, places, total = [], [], 0
    for mine, count in read_shares(task, processes, "validation", larger * trained_at_once):
        share, mine = processes.share(count), mine.to(device)
        # also without a share: all take part in the forward pass of a sharded model
        table = observed(metric, as_float(replica.evaluate(task.forward, mine)), mine)
        if share.stop > share.start:
            tables.append(table)
            places.append(np.arange(total + share.start, total + share.stop))
        total += count
        between()
    replica.evaluated()
    rows, where = in_order(tables, places)
    if not np.array_equal(where, np.arange(total)):
        raise StageError(f"{len(where)} of {total} validation examples were evaluated, or one of them twice")
    return rows
