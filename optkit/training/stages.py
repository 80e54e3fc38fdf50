"""The stage that trains a model on its task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from optkit.core.errors import UserError
from optkit.core.stage import Context, Outcome
from optkit.training.callbacks import Callback, KeepZeros
from optkit.training.config import Trainer
from optkit.training.objectives import Objective, TaskLoss

if TYPE_CHECKING:
    from torch import nn


@dataclass
class Train:
    """Train or fine-tune on the task's own loss.

    Attributes:
        trainer: how.
    """

    trainer: Trainer = field(default_factory=Trainer)

    technique: ClassVar[str] = "train"
    needs: ClassVar[frozenset[str]] = frozenset({"float"})
    adds: ClassVar[frozenset[str]] = frozenset()
    drops: ClassVar[frozenset[str]] = frozenset()

    def apply(self, module: nn.Module, ctx: Context, callbacks: Sequence[Callback] = ()) -> Outcome:
        return fit_stage(self.trainer, module, ctx, TaskLoss(ctx.task, self.trainer.label_smoothing), callbacks)


def fit_stage(
    trainer: Trainer,
    module: nn.Module,
    ctx: Context,
    objective: Objective,
    callbacks: Sequence[Callback] = (),
    facts: dict[str, Any] | None = None,
) -> Outcome:
    """Trains a stage's module; a sparse variant keeps its zeros whatever the objective."""
    if trainer.lora is not None and "sparse" in ctx.variant.traits:
        fix = "set lora=null, or prune after this stage"
        raise UserError("adapters would fill the zeros of a sparse model", key="trainer.lora", fix=fix)
    own = [*callbacks, KeepZeros()] if "sparse" in ctx.variant.traits else list(callbacks)
    report = trainer.fit(
        module,
        ctx.task,
        objective,
        seed=ctx.seed,
        workdir=ctx.workdir,
        device=ctx.device,
        callbacks=own,
        max_steps=ctx.max_steps,
    )
    return Outcome(module, (facts or {}) | report.facts(), resumed_s=report.resumed_s)
