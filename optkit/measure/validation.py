"""Loss or metric on validation, evaluated many times: a part of the split is kept in memory.

Several processes (`optkit.core.processes`) each keep and evaluate a share of it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn

from optkit.core.metric import observed
from optkit.core.processes import current
from optkit.core.sharding import in_order, sharded
from optkit.core.structure import as_float
from optkit.core.task import Task, rows_at_once

BATCH_SIZE = 64


class Validation:
    """Loss or metric of modules on examples spread evenly over the validation split.

    Args:
        task: whose validation split, loss and first metric are used.
        examples: at most so many.
        metric: ``"loss"`` (the mean over examples) or ``"metric"`` (the task's first).
    """

    def __init__(self, task: Task, examples: int, metric: str = "loss"):
        self.task, self.metric = task, metric
        total = task.size("validation")
        places = torch.linspace(0, total - 1, min(examples, total)).round().long()
        rows = rows_at_once(task, min(BATCH_SIZE * max(1, total // examples), 512))
        read = ((batch, torch.isin(batch.index, places)) for batch in task.batches("validation", rows))
        self.batches = list(sharded(batch.subset(held.nonzero()[:, 0]) for batch, held in read if held.any()))

    def by(self, metric: str) -> Validation:
        """The same examples, not read anew, under another metric."""
        other = copy.copy(self)
        other.metric = metric
        return other

    @property
    def higher_is_better(self) -> bool:
        return self.metric != "loss" and self.task.metrics[0].higher_is_better

    def losses(self, module: nn.Module) -> Iterator[Tensor]:
        """The mean loss of each batch, which can be differentiated."""
        device = next(chain(module.parameters(), module.buffers())).device
        for batch in (b.to(device) for b in self.batches):
            yield self.task.loss(self.task.forward(module, batch), batch)

    @torch.no_grad()
    def __call__(self, module: nn.Module) -> float:
        """The figure of a module, which is run as it is: in evaluation mode if it is in it."""
        device = next(chain(module.parameters(), module.buffers())).device
        metric, loss, count, tables = self.task.metrics[0], 0.0, 0, []
        for batch in (b.to(device) for b in self.batches):
            output = as_float(self.task.forward(module, batch))
            if self.metric == "loss":
                loss += float(self.task.loss(output, batch)) * len(batch)
                count += len(batch)
            else:
                tables.append(observed(metric, output, batch))
        if self.metric != "loss":
            return metric.value(in_order(tables, [batch.index.numpy() for batch in self.batches])[0])
        total, examples = current().sum(torch.tensor([loss, count], dtype=torch.float64)).tolist()
        return total / examples
