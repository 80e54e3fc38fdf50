"""Loss or metric on validation, evaluated many times: a part of the split is kept in memory."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import nn

from optkit.core.metric import observed, stacked
from optkit.core.structure import as_float
from optkit.core.task import Task

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
        self.batches = []
        for batch in task.batches("validation", min(BATCH_SIZE * max(1, total // examples), 512)):
            held = torch.isin(batch.index, places)
            if held.any():
                self.batches.append(batch.subset(held.nonzero()[:, 0]))

    def by(self, metric: str) -> Validation:
        """The same examples, not read anew, under another metric."""
        other = copy.copy(self)
        other.metric = metric
        return other

    @property
    def higher_is_better(self) -> bool:
        return self.metric != "loss" and self.task.metrics[0].higher_is_better

    @torch.no_grad()
    def __call__(self, module: nn.Module) -> float:
        """The figure of a module, which is run as it is: in evaluation mode if it is in it."""
        device = next(chain(module.parameters(), module.buffers())).device
        metric, loss, tables = self.task.metrics[0], 0.0, []
        for batch in (b.to(device) for b in self.batches):
            output = as_float(self.task.forward(module, batch))
            if self.metric == "loss":
                loss += float(self.task.loss(output, batch)) * len(batch)
            else:
                tables.append(observed(metric, output, batch))
        return metric.value(stacked(tables)) if tables else loss / sum(map(len, self.batches))
