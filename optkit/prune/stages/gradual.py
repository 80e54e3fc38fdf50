"""The stage of gradual pruning, on any objective."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from optkit.core.checks import check_count, is_number
from optkit.core.errors import UserError
from optkit.core.stage import Context, Outcome
from optkit.core.task import Task
from optkit.prune.stages.magnitude import Masking
from optkit.training import Train, Training, check_sharding, check_training

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
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

    def check(self, module: nn.Module, task: Task) -> None:
        """Raises UserError where several processes would each hold a part of the weights that are ranked."""
        from optkit.prune.gradual import GradualMasks

        check_sharding(self.training.trainer, [GradualMasks(self.masks, self.share)], "training.trainer.sharding")

    def apply(self, module: nn.Module, ctx: Context) -> Outcome:
        from optkit.prune.gradual import GradualMasks
        from optkit.prune.masks import apply_masks_

        grown = GradualMasks(self.masks, self.share, self.initial, self.begin, self.end, self.every)
        trained = self.training.apply(module, ctx, [grown])
        # a moving average remembers weights from before they were masked
        apply_masks_(trained.module, grown.current)
        facts = self.facts(trained.module, grown.current) | trained.facts
        return Outcome(trained.module, facts, resumed_s=trained.resumed_s)
