"""The distillation stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from optkit.core.errors import UserError
from optkit.core.stage import Context, Outcome
from optkit.core.targets import TARGET
from optkit.core.task import Task
from optkit.distill.objective import DistillationObjective
from optkit.distill.terms import read_terms
from optkit.training import Callback, Trainer, fit_stage


@dataclass
class Distillation:
    """Train the model to be like a teacher: in its answers, in its features, in its attention.

    Attributes:
        losses: names (``optkit.distill.KINDS``) with their weights, or with ``weight``, ``pairs`` and the loss's own
            options; their sum is what the teacher asks for.
        temperature: softens the classes of both, for losses of logits.
        alpha: weight of the teacher against the labels; 1 uses the teacher alone.
        pairs: layers to compare, for losses that do not say: blocks, stages, last, or paths of the student's modules
            to the teacher's, patterns as well; None is each loss's own choice.
        teacher: a model spec (``_target_``, its arguments, ``checkpoint``); None is the recipe's baseline.
        trainer: how to train.
    """

    losses: dict[str, Any] = field(default_factory=lambda: {"kd": 1.0})
    temperature: float = 4.0
    alpha: float = 0.9
    pairs: Any = None
    teacher: dict[str, Any] | None = None
    trainer: Trainer = field(default_factory=Trainer)

    technique: ClassVar[str] = "distill"
    needs: ClassVar[frozenset[str]] = frozenset({"float"})
    adds: ClassVar[frozenset[str]] = frozenset()
    drops: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        for name, value, top in (("temperature", self.temperature, None), ("alpha", self.alpha, 1)):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not value > 0 or (top is not None and value > top):
                limits = "above 0" + (f" and up to {top}" if top else "")
                raise UserError(f"{value!r} is not {limits}", key=name, value=value)
        self._terms = read_terms(self.losses, self.pairs, self.temperature)

    def check(self, module: nn.Module, task: Task) -> None:
        """Raises UserError if such a model cannot learn so from itself, as it can from the baseline."""
        if self.teacher is None:
            DistillationObjective(task, module, module, self._terms, alpha=self.alpha)

    def apply(self, module: nn.Module, ctx: Context, callbacks: Sequence[Callback] = ()) -> Outcome:
        teacher = ctx.baseline() if self.teacher is None else ctx.build_model(self.teacher)
        teacher.to(ctx.device, memory_format=torch.channels_last).eval().requires_grad_(False)
        student = module.to(ctx.device).eval()
        with DistillationObjective(
            ctx.task,
            student,
            teacher,
            self._terms,
            alpha=self.alpha,
            label_smoothing=self.trainer.label_smoothing,
            seed=ctx.seed,
        ) as objective:
            facts = {"teacher": "baseline" if self.teacher is None else self.teacher[TARGET], **objective.facts()}
            return fit_stage(self.trainer, student, ctx, objective, callbacks, facts)
