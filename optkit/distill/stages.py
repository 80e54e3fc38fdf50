"""The distillation stage."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from optkit.core.checks import check_choice, check_count, is_number
from optkit.core.errors import UserError
from optkit.core.instantiate import NAMED
from optkit.core.stage import Context, KeyContext, Outcome
from optkit.core.task import CLASSES, POOL, TOKENS, Batch, Task
from optkit.core.trust import check_trust
from optkit.distill.teachers import check_teacher, compiled, load_teacher, teacher_identity, teacher_name
from optkit.distill.terms import WORDS, read_terms
from optkit.models import ModelSpec
from optkit.training import Callback, Trainer, fit_stage

if TYPE_CHECKING:
    from torch import Tensor, nn

    from optkit.distill.recorded import RecordedOutputs


@dataclass
class Distillation:
    """Train the model to match a teacher: its outputs, its features, its attention.

    Attributes:
        losses: names (``optkit.distill.KINDS``), or dotted paths of your own, with their weights, or with ``weight``,
            ``pairs`` and the loss's own options; or a list of names. Their weighted sum is what the teacher asks for.
            Your own is ``f(student, teacher)`` of outputs, or of features if it has ``pairs``
            (`optkit.distill.terms.own_kind`).
        temperature: softens the logits of both, for losses of outputs; values and embeddings stay as they are.
        alpha: weight of the teacher against the labels; 1 uses the teacher alone.
        pairs: layers to compare, for losses that do not say: blocks, stages, last, output (what the models return), or
            paths of the student's modules to the teacher's, patterns as well; None is each loss's own choice.
        teacher: None is the recipe's baseline; or the folder of a variant of another run, a model spec (``_target_``,
            its arguments, ``checkpoint``), or a list of these, whose outputs are averaged.
        trust: what a variant's folder may name besides optkit's models and stages, as for `optkit.load`: packages or
            modules with classes of models and stages, or the full name of one class or function.
        cached_views: record the teacher's outputs on so many augmented passes over the train split, once for all runs;
            the epochs take them in turn. None runs the teacher on every batch. For losses of outputs only.
        cached_top: record the so many largest logits of an example, or of each token, only; each of the others gets
            an equal part of the chance that they had together at this ``temperature``. None records all.
        compile_teacher: run the teacher compiled by inductor, which takes half a minute first. For losses of outputs
            only.
        trainer: how to train.
    """

    losses: dict[str, Any] | list[str] = field(default_factory=lambda: {"kd": 1.0}, metadata=NAMED)
    temperature: float = 4.0
    alpha: float = 0.9
    pairs: Any = None
    teacher: dict[str, Any] | list[Any] | str | None = None
    trust: Sequence[str] = ()
    cached_views: int | None = None
    cached_top: int | None = None
    compile_teacher: bool = False
    trainer: Trainer = field(default_factory=Trainer)

    split: ClassVar[str] = POOL
    technique: ClassVar[str] = "distill"
    needs: ClassVar[frozenset[str]] = frozenset({"float"})
    adds: ClassVar[frozenset[str]] = frozenset()
    drops: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        for name, value, top in (("temperature", self.temperature, None), ("alpha", self.alpha, 1)):
            if not is_number(value) or not value > 0 or (top is not None and value > top):
                limits = "above 0" + (f" and up to {top}" if top else "")
                raise UserError(f"{value!r} is not {limits}", key=name, value=value)
        self._terms = read_terms(self.losses, self.pairs, self.temperature)
        check_teacher(self.teacher)
        check_trust(self.trust)
        check_choice("compile_teacher", self.compile_teacher, (True, False))
        others = self.inside
        if self.cached_views is not None:
            check_count("cached_views", self.cached_views)
        if self.cached_top is not None:
            check_count("cached_top", self.cached_top)
            if self.cached_views is None:
                raise UserError("nothing is recorded", key="cached_top", fix="set cached_views too, or cached_top=null")
        for key, what, chosen in (
            ("cached_views", "recorded", self.cached_views is not None),
            ("teacher", "averaged", isinstance(self.teacher, list)),
            ("compile_teacher", "compiled", self.compile_teacher),
        ):
            if others and chosen:
                message = f"only outputs are {what}, and {others[0]} compares layers"
                raise UserError(message, key=key, value=getattr(self, key), fix=f"~losses.{others[0]}, or ~{key}")

    @property
    def inside(self) -> list[str]:
        """The losses that compare layers inside the models."""
        return [term.name for term in self._terms if not term.compares_outputs]

    def depends_on(self, context: KeyContext) -> Any:
        """The teacher's structure and weights, because its folder may hold another model later."""
        return teacher_identity(self.teacher, context)

    def check(self, module: nn.Module, task: Task) -> None:
        """Raises UserError if this model cannot be trained by its teacher with these losses."""
        from optkit.distill.objective import DistillationObjective
        from optkit.models.compatibility import answer_to

        def build_model(node: dict[str, Any]) -> nn.Module:
            return ModelSpec.from_config(node, task.model_defaults(), "teacher").build(0, "teacher")

        for term in self._terms:
            term.check(task.output_kind)
        unlabelled = task.size(POOL) - task.size("train")
        for term in self._terms:
            if unlabelled and term.kind.needs_targets:
                message = f"{term.name} needs the right classes, which the {unlabelled} unlabelled examples have not"
                raise UserError(message, key=f"losses.{term.name}", fix="kd or dist, or task.unlabelled=null")
        teacher = load_teacher(self.teacher, lambda: copy.deepcopy(module), build_model, self.trust)
        batch = next(task.batches("train", 2))
        output = answer_to(batch.inputs, teacher, "teacher", lambda model: task.forward(model, batch))
        if self.cached_views is not None:
            self._check_recorded(output, task.output_kind)
        if self.compile_teacher:
            compiled(teacher)
        DistillationObjective(task, module, teacher, self._terms, alpha=self.alpha)

    def _check_recorded(self, output: Any, kind: str) -> None:
        """Raises UserError for a teacher's output that cannot be recorded as it is to be."""
        from optkit.distill.recorded import bytes_of_top

        shape = list(getattr(output, "shape", ()))
        if shape[:1] != [2]:
            found = shape or f"a {type(output).__name__}"
            message = f"outputs of one tensor with a row an example are recorded; the teacher gives {found} for two"
            raise UserError(message, key="cached_views", value=self.cached_views, fix="null runs the teacher")
        if self.cached_top is None:
            return
        if kind not in (CLASSES, TOKENS):
            message = f"keeps the largest logits of classes or tokens, and this task's outputs are {WORDS[kind]}"
            raise UserError(message, key="cached_top", value=self.cached_top, fix="null, which keeps all")
        classes = shape[-1]
        if self.cached_top >= classes:
            fix = f"fewer than {classes}, or null, which keeps all"
            raise UserError(f"of {classes} classes", key="cached_top", value=self.cached_top, fix=fix)
        if bytes_of_top(self.cached_top) >= 4 * classes:
            message = f"{bytes_of_top(self.cached_top)} bytes an example, and all {classes} logits take {4 * classes}"
            raise UserError(message, key="cached_top", value=self.cached_top, fix="null, which keeps all")

    def apply(self, module: nn.Module, ctx: Context, callbacks: Sequence[Callback] = ()) -> Outcome:
        from optkit.core.layout import channels_last_
        from optkit.distill.objective import DistillationObjective

        teacher = load_teacher(self.teacher, ctx.baseline, ctx.build_model, self.trust)
        channels_last_(teacher.to(ctx.device))
        student = module.to(ctx.device).eval()
        run = compiled(teacher) if self.compile_teacher else teacher
        recorded = None if self.cached_views is None else self._recorded(teacher, run, ctx)
        with DistillationObjective(
            ctx.task,
            student,
            teacher,
            self._terms,
            alpha=self.alpha,
            label_smoothing=self.trainer.label_smoothing,
            seed=ctx.seed,
            recorded=recorded,
            run=run,
        ) as objective:
            facts = {"teacher": teacher_name(self.teacher), **objective.facts()}
            outcome = fit_stage(self.trainer, student, ctx, objective, callbacks, facts)
        if recorded is not None:
            outcome.facts["cached"] = {"views": recorded.views, "computed": recorded.computed}
        return outcome

    def _recorded(self, teacher: nn.Module, running: nn.Module, ctx: Context) -> RecordedOutputs:
        import torch

        from optkit.distill.recorded import RecordedOutputs, run_teacher
        from optkit.training.trainer import choose_precision

        precision = choose_precision(self.trainer.precision, ctx.device)

        def run(batch: Batch) -> Tensor:
            with torch.autocast(ctx.device.type, torch.bfloat16, enabled=precision == "bf16"):
                return run_teacher(ctx.task, running, batch.to(ctx.device))

        assert self.cached_views is not None
        threads = f", {torch.get_num_threads()} threads" if ctx.device.type == "cpu" else ""
        size, name = self.trainer.batch_size, f"{precision} on {ctx.device.type}{threads}"
        top = None if self.cached_top is None else (self.cached_top, self.temperature)
        return RecordedOutputs(ctx.task, teacher, self.cached_views, size, ctx.seed, run, name, top)
