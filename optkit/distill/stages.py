"""Distillation stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from optkit.core.errors import UserError
from optkit.core.stage import Context, Outcome
from optkit.core.task import Batch, Task
from optkit.distill.losses import kd_loss
from optkit.training import Callback, Trainer, fit_stage


@dataclass(frozen=True)
class LogitObjective:
    """``alpha`` times the distillation loss plus ``1 - alpha`` times the task's own.

    Attributes:
        task: gives the forward pass and the loss against the labels.
        teacher: in eval mode.
        temperature, alpha: see `LogitDistillation`.
        label_smoothing: of the task's own loss.
    """

    task: Task
    teacher: nn.Module
    temperature: float
    alpha: float
    label_smoothing: float = 0.0

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        with torch.no_grad():
            target = self.task.forward(self.teacher, batch).float()
        logits = self.task.forward(module, batch).float()
        loss = self.alpha * kd_loss(logits, target, self.temperature)
        if self.alpha < 1:
            loss = loss + (1 - self.alpha) * self.task.loss(logits, batch, self.label_smoothing)
        return loss


@dataclass
class LogitDistillation:
    """Train the model to match a teacher's class probabilities (Hinton et al., 2015).

    Attributes:
        temperature: softens both sides' classes.
        alpha: weight of the teacher against the labels; 1 uses the teacher alone.
        teacher: a model spec (``_target_``, its arguments, ``checkpoint``); None is the recipe's baseline.
        trainer: how to train.
    """

    temperature: float = 4.0
    alpha: float = 0.9
    teacher: dict[str, Any] | None = None
    trainer: Trainer = field(default_factory=Trainer)

    technique: ClassVar[str] = "distill"
    needs: ClassVar[frozenset[str]] = frozenset({"float"})
    adds: ClassVar[frozenset[str]] = frozenset()
    drops: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UserError(f"{self.temperature} is not above 0", key="temperature", value=self.temperature)
        if not 0 < self.alpha <= 1:
            raise UserError(f"{self.alpha} is not above 0 and up to 1", key="alpha", value=self.alpha)

    def apply(self, module: nn.Module, ctx: Context, callbacks: Sequence[Callback] = ()) -> Outcome:
        teacher = ctx.baseline() if self.teacher is None else ctx.build_model(self.teacher)
        teacher.to(ctx.device, memory_format=torch.channels_last).eval().requires_grad_(False)
        _same_classes(module, teacher, ctx)
        objective = LogitObjective(ctx.task, teacher, self.temperature, self.alpha, self.trainer.label_smoothing)
        facts = {"teacher": "baseline" if self.teacher is None else self.teacher["_target_"]}
        return fit_stage(self.trainer, module, ctx, objective, callbacks, facts)


def _same_classes(student: nn.Module, teacher: nn.Module, ctx: Context) -> None:
    example = tuple(x.to(ctx.device) for x in ctx.task.example(1))
    with torch.no_grad():
        theirs, ours = teacher(*example).shape[-1], student.to(ctx.device).eval()(*example).shape[-1]
    if theirs != ours:
        raise UserError(
            f"the teacher has {theirs} classes, the student {ours}", key="teacher", fix="pick another teacher"
        )
