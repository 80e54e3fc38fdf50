"""The stage of quantization-aware training, on whatever objective."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from optkit.core.checks import check_choice, is_number
from optkit.core.errors import UserError
from optkit.core.stage import Context, Outcome
from optkit.core.task import Task
from optkit.quantize.qat.fake_quant import MovingRange
from optkit.quantize.qat.graph import LiveNorm, convert_qat, move_to_device, prepare_qat
from optkit.quantize.stages.calibrated import CalibratedInt8
from optkit.training import Callback, LooksInside, Train, Training, check_training

FREEZES: dict[str, type[LiveNorm] | type[MovingRange]] = {"norms": LiveNorm, "observers": MovingRange}


@dataclass
class Freezing(Callback):
    """Freezes batch-norm statistics and activation ranges for the rest of a training, so that weights settle on them.

    Attributes:
        norms, observers: after which share of the training; None: never.
        frozen: the step at which each was.
    """

    norms: float | None = 0.5
    observers: float | None = 0.5
    frozen: dict[str, int] = field(default_factory=dict, init=False)

    def on_train_begin(self, module: nn.Module) -> None:
        self._module, self.frozen = module, {}
        self._freeze(0, 1)

    def on_step_end(self, module: nn.Module, step: int, total: int) -> None:
        self._freeze(step, total)

    def _freeze(self, step: int, total: int) -> None:
        for what, kind in FREEZES.items():
            share = getattr(self, what)
            if share is None or what in self.frozen or step < share * total:
                continue
            found = [m for m in self._module.modules() if isinstance(m, kind)]
            for module in found:
                module.freeze()
            if found:
                self.frozen[what] = step

    def state_dict(self) -> dict[str, Any]:
        return {"frozen": self.frozen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.frozen = state["frozen"]
        for module in self._module.modules():
            if any(isinstance(module, FREEZES[what]) for what in self.frozen):
                module.freeze()  # type: ignore[operator]


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
            fix = f"~stages.NAME.training.losses.{inside[0]}; losses of logits work: kd, dkd, dist"
            raise UserError(message, key=f"training.losses.{inside[0]}", fix=fix)

    def apply(self, module: nn.Module, ctx: Context) -> Outcome:
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
