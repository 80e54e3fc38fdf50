"""Loss or accuracy on validation, evaluated many times: a part of the split is kept in memory."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import nn

from optkit.core.task import Batch, Task

BATCH_SIZE = 64


class Validation:
    """Loss or accuracy of modules on examples spread evenly over the validation split.

    Args:
        task: whose validation split, loss and metric are used.
        examples: at most so many.
        metric: ``"loss"`` (the mean over examples) or ``"accuracy"`` (the task's metric).
    """

    def __init__(self, task: Task, examples: int, metric: str = "loss"):
        self.task, self.metric = task, metric
        total = task.size("validation")
        places = torch.linspace(0, total - 1, min(examples, total)).round().long()
        self.batches = []
        for batch in task.batches("validation", min(BATCH_SIZE * max(1, total // examples), 512)):
            held = torch.isin(batch.index, places)
            if held.any():
                self.batches.append(Batch(tuple(x[held] for x in batch.inputs), batch.targets[held], batch.index[held]))

    def by(self, metric: str) -> Validation:
        """The same examples, not read anew, under another metric."""
        other = copy.copy(self)
        other.metric = metric
        return other

    @torch.no_grad()
    def __call__(self, module: nn.Module) -> float:
        """The metric of a module, which is run as it is: in evaluation mode if it is in it."""
        device = next(chain(module.parameters(), module.buffers())).device
        loss, correct = 0.0, []
        for batch in (b.to(device) for b in self.batches):
            logits = self.task.forward(module, batch).float()
            loss += float(self.task.loss(logits, batch)) * len(batch)
            correct.append(self.task.correct(logits, batch).cpu())
        return loss / sum(map(len, correct)) if self.metric == "loss" else self.task.metric(torch.cat(correct).numpy())
