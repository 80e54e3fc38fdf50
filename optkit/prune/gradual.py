"""Gradual pruning: masks that grow while the model trains, on whatever objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from optkit.core.checks import check_count, is_number
from optkit.core.errors import UserError
from optkit.core.stage import Context, Outcome
from optkit.prune.masking import Masking
from optkit.prune.masks import Masks, apply_masks_
from optkit.training import Callback, Train, Training, check_training


def cubic_sparsity(step: int, begin: int, end: int, final: float, initial: float = 0.0) -> float:
    """The share of zeros after a training step.

    Zhu and Gupta, "To prune, or not to prune" (2017): ``s_f + (s_i - s_f) * (1 - (t - t_0) / (n * dt))**3``, fast at
    first, while weights are plenty, and slow near the end.

    Args:
        step: t, any training step.
        begin: t_0; up to it the share is ``initial``.
        end: t_0 + n * dt; from it on the share is ``final``.
        final: s_f.
        initial: s_i.
    """
    if step >= end:
        return final
    progress = max(0, step - begin) / (end - begin)
    return final + (initial - final) * (1 - progress) ** 3


@dataclass
class GradualMasks(Callback):
    """Masks more and more weights during a training, and keeps what is masked at zero.

    A masked weight is zero and so among the smallest: it stays masked.

    Attributes:
        masks: ``masks(module, share)``, such as a partial `magnitude_masks`.
        final: share of zeros in the end.
        initial: share of zeros at ``begin``.
        begin, end: when the share begins to grow and when it is reached, as shares of the training.
        every: steps between two growths.
    """

    masks: Callable[[nn.Module, float], Masks]
    final: float
    initial: float = 0.0
    begin: float = 0.0
    end: float = 0.75
    every: int = 20
    current: Masks = field(default_factory=dict, init=False)

    def on_step_end(self, module: nn.Module, step: int, total: int) -> None:
        begin = max(1, round(self.begin * total))
        end = max(begin, round(self.end * total))
        if step == end or (begin <= step < end and (step - begin) % self.every == 0):
            self.current = self.masks(module, cubic_sparsity(step, begin, end, self.final, self.initial))
        apply_masks_(module, self.current)

    def state_dict(self) -> dict[str, Any]:
        return {"masks": self.current}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.current = state["masks"]


@dataclass
class GradualPruning(Masking):
    """Set more and more of the smallest weights to zero while training (Zhu and Gupta, 2017), on any objective.

    Attributes:
        amount, scope, pattern, protect: see `Masking`; with a pattern, the smallest of what it removes go first.
        initial, begin, end, every: see `GradualMasks`.
        training: the training stage during which the masks grow; it says how to train, and on which objective.
    """

    initial: float = 0.0
    begin: float = 0.0
    end: float = 0.75
    every: int = 20
    training: Training = field(default_factory=Train)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("every", self.every)
        for key, low, high in (("initial", 0.0, self.share), ("begin", 0.0, 1.0), ("end", self.begin, 1.0)):
            value = getattr(self, key)
            if not is_number(value) or not low <= value <= high:
                raise UserError(f"{value!r} is not a share from {low:g} to {high:g}", key=key, value=value)
        check_training("training", self.training)
        trainer = self.training.trainer
        for key, refused in (("select", trainer.select == "best"), ("patience", trainer.patience is not None)):
            if refused:
                message = "an early epoch would be kept, before the amount is reached"
                fix = "last or ema" if key == "select" else "null"
                raise UserError(message, key=f"training.trainer.{key}", value=getattr(trainer, key), fix=fix)

    def apply(self, module: nn.Module, ctx: Context) -> Outcome:
        grown = GradualMasks(self.masks, self.share, self.initial, self.begin, self.end, self.every)
        trained = self.training.apply(module, ctx, [grown])
        # a moving average remembers weights from before they were masked
        apply_masks_(trained.module, grown.current)
        facts = self.facts(trained.module, grown.current) | trained.facts
        return Outcome(trained.module, facts, resumed_s=trained.resumed_s)
