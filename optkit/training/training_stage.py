"""What a training stage is to other techniques, which train after their steps or with callbacks of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from optkit.core.errors import UserError
from optkit.core.instantiate import parameters
from optkit.core.stage import Context, Outcome

if TYPE_CHECKING:
    from torch import nn

    from optkit.training.callbacks import Callback
    from optkit.training.config import Trainer


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
