"""The stage of quantization-aware training, on whatever objective."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from optkit.core.checks import check_choice, is_number
from optkit.core.errors import UserError
from optkit.core.stage import Context, Outcome
from optkit.core.task import Task
from optkit.quantize.stages.calibrated import CalibratedInt8
from optkit.training import LooksInside, Train, Training, check_training

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class QuantizationAwareTraining(CalibratedInt8):
    """Train with weights and activations rounded to int8 (Jacob et al., 2018), then convert; on any objective.

    Attributes:
        target, observer, reduce_range, protect: see `Int8Options`.
        batches, batch_size, min_int8_share: see `CalibratedInt8`; the ranges begin as calibration finds them.
        learned_scales: train the scales by gradients (LSQ; Esser et al., 2020); else they follow the largest values.
        freeze_norms: share of the training after which batch norms keep their statistics; null: never.
        freeze_observers: share of the training after which ranges that follow the batches stay; null: never.
        training: the training stage; it says how to train, and on which objective.
    """

    learned_scales: bool = False
    freeze_norms: float | None = 0.5
    freeze_observers: float | None = 0.5
    training: Training = field(default_factory=Train)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("learned_scales", self.learned_scales, (True, False))
        for key in ("freeze_norms", "freeze_observers"):
            value = getattr(self, key)
            if value is not None and not (is_number(value) and 0 <= value <= 1):
                raise UserError(f"{value!r} is not a share from 0 to 1", key=key, value=value, fix="null for never")
        check_training("training", self.training)

    def check(self, module: nn.Module, task: Task) -> None:
        super().check(module, task)
        inside = self.training.inside if isinstance(self.training, LooksInside) else ()
        if inside:
            message = f"{inside[0]} compares layers by their paths, and the graph that is trained has none"
            fix = f"~stages.NAME.training.losses.{inside[0]}; losses of outputs work: kd, dkd, dist"
            raise UserError(message, key=f"training.losses.{inside[0]}", fix=fix)

    def apply(self, module: nn.Module, ctx: Context) -> Outcome:
        from optkit.quantize.qat.freezing import Freezing
        from optkit.quantize.qat.graph import convert_qat, move_to_device, prepare_qat

        prepared = prepare_qat(
            module.eval(),
            ctx.task.example(2),
            self.calibration(ctx),
            learned_scales=self.learned_scales,
            **self.keywords(),
        )
        move_to_device(prepared.module, ctx.device)
        freezing = Freezing(self.freeze_norms, self.freeze_observers)
        trained = self.training.apply(prepared.module, ctx, [freezing])
        outcome = self.outcome(convert_qat(prepared), ctx)
        own = {"learned_scales": self.learned_scales, "frozen_at_step": freezing.frozen}
        return replace(outcome, facts=outcome.facts | own | trained.facts, resumed_s=trained.resumed_s)
