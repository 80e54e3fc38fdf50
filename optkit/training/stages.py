"""The stage that trains a model on its task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import nn

from optkit.core.errors import UserError
from optkit.core.instantiate import parameters
from optkit.core.stage import Context, Outcome
from optkit.training.callbacks import Callback, KeepZeros
from optkit.training.objectives import Objective, TaskLoss
from optkit.training.trainer import Trainer


@runtime_checkable
class Training(Protocol):
    """A training stage as other techniques use it: after their steps, or with callbacks of their own.

    `Train` and the distillation stages are ones; which, is the recipe's choice.
    """

    trainer: Trainer

    def apply(self, module: nn.Module, ctx: Context, callbacks: Sequence[Callback] = ()) -> Outcome:
        """Trains the module as the stage does in a chain, with these callbacks besides its own."""
        ...


@runtime_checkable
class LooksInside(Protocol):
    """A training stage whose losses may look at layers inside the model, which they find by their paths.

    Attributes:
        inside: the names of those losses.
    """

    @property
    def inside(self) -> Sequence[str]: ...


def split_of(training: Training) -> str:
    """What a training stage trains on, ``train`` or ``pool``: its attribute ``split``, if it has one."""
    return getattr(training, "split", "train")


def check_training(key: str, value: object) -> None:
    """Raise a UserError unless ``value`` is a training stage."""
    if not isinstance(value, Training) or "callbacks" not in parameters(value.apply):
        shown = repr(value) if isinstance(value, (str, int, float, type(None))) else type(value).__name__
        fix = f"stage@stages.NAME.{key}=train, or distill/logits; with a + if it has none yet"
        raise UserError(f"{shown} is not a training stage", key=key, value=value, fix=fix)


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
