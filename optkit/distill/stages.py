"""The distillation stage."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from optkit.core.checks import check_count
from optkit.core.errors import UserError
from optkit.core.stage import Context, Outcome
from optkit.core.task import Batch, Task
from optkit.distill.objective import DistillationObjective, run_teacher
from optkit.distill.recorded import RecordedLogits
from optkit.distill.teachers import check_teacher, load_teacher, teacher_name
from optkit.distill.terms import LOGITS, read_terms
from optkit.models import ModelSpec
from optkit.training import Callback, Trainer, fit_stage
from optkit.training.trainer import choose_precision


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
        teacher: None is the recipe's baseline; or the folder of a variant of another run, a model spec (``_target_``,
            its arguments, ``checkpoint``), or a list of these, whose logits are averaged.
        cached_views: record the teacher's logits on so many augmented passes over the train split, once for all runs;
            the epochs take them in turn. None runs the teacher on every batch. For losses of logits only.
        trainer: how to train.
    """

    losses: dict[str, Any] = field(default_factory=lambda: {"kd": 1.0})
    temperature: float = 4.0
    alpha: float = 0.9
    pairs: Any = None
    teacher: dict[str, Any] | list[Any] | str | None = None
    cached_views: int | None = None
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
        check_teacher(self.teacher)
        others = self.inside
        if self.cached_views is not None:
            check_count("cached_views", self.cached_views)
        if others and (self.cached_views is not None or isinstance(self.teacher, list)):
            key, what = ("cached_views", "recorded") if self.cached_views is not None else ("teacher", "averaged")
            message = f"only logits are {what}, and {others[0]} compares more"
            raise UserError(message, key=key, value=getattr(self, key), fix=f"~losses.{others[0]}, or {key}=null")

    @property
    def inside(self) -> list[str]:
        """The losses that compare layers inside the models."""
        return [term.name for term in self._terms if term.kind.of != LOGITS]

    def check(self, module: nn.Module, task: Task) -> None:
        """Raises UserError if such a model cannot learn so from its teacher."""

        def build_model(node: dict[str, Any]) -> nn.Module:
            return ModelSpec.from_config(node, task.model_defaults(), "teacher").build(0, "teacher")

        teacher = load_teacher(self.teacher, lambda: copy.deepcopy(module), build_model)
        DistillationObjective(task, module, teacher, self._terms, alpha=self.alpha)

    def apply(self, module: nn.Module, ctx: Context, callbacks: Sequence[Callback] = ()) -> Outcome:
        teacher = load_teacher(self.teacher, ctx.baseline, ctx.build_model)
        teacher.to(ctx.device, memory_format=torch.channels_last)
        student = module.to(ctx.device).eval()
        recorded = None if self.cached_views is None else self._recorded(teacher, ctx)
        with DistillationObjective(
            ctx.task,
            student,
            teacher,
            self._terms,
            alpha=self.alpha,
            label_smoothing=self.trainer.label_smoothing,
            seed=ctx.seed,
            recorded=recorded,
        ) as objective:
            facts = {"teacher": teacher_name(self.teacher), **objective.facts()}
            outcome = fit_stage(self.trainer, student, ctx, objective, callbacks, facts)
        if recorded is not None:
            outcome.facts["cached"] = {"views": recorded.views, "computed": recorded.computed}
        return outcome

    def _recorded(self, teacher: nn.Module, ctx: Context) -> RecordedLogits:
        precision = choose_precision(self.trainer.precision, ctx.device)

        def run(batch: Batch) -> Tensor:
            with torch.autocast(ctx.device.type, torch.bfloat16, enabled=precision == "bf16"):
                return run_teacher(ctx.task, teacher, batch.to(ctx.device))

        assert self.cached_views is not None
        size, name = self.trainer.batch_size, f"{precision} on {ctx.device.type}"
        return RecordedLogits(ctx.task, teacher, self.cached_views, size, ctx.seed, run, name)
