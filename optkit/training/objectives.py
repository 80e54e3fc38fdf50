"""What training minimizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from optkit.core.task import Batch, Task

if TYPE_CHECKING:
    from torch import Tensor, nn


class Objective(Protocol):
    """A loss of a module on a batch; distillation, masks and fake quantization meet here."""

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        """A scalar to minimize; runs the module, under the trainer's autocast."""
        ...


@runtime_checkable
class OwnParameters(Protocol):
    """An objective with parameters of its own, such as projections from a student's features to a teacher's.

    Attributes:
        own: holds them. They are trained with the model, saved with the training's state, and are no part of the model
            that is kept.
    """

    own: nn.Module


@runtime_checkable
class ChoosesBatches(Protocol):
    """An objective that has a say in which batches an epoch sees.

    One with an attribute ``split`` trains on that split, ``train`` or ``pool``.
    """

    def batches_seed(self, epoch: int) -> int | None:
        """Called as an epoch begins, counted from 0: the seed of its batches, or None for the trainer's own."""
        ...


@dataclass(frozen=True)
class TaskLoss:
    """The task's own loss against the labels, computed in fp32 whatever the model runs in."""

    task: Task
    label_smoothing: float = 0.0

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        import torch

        from optkit.core.structure import as_float

        output = as_float(self.task.forward(module, batch))
        with torch.autocast(batch.index.device.type, enabled=False):
            return self.task.loss(output, batch, self.label_smoothing)
