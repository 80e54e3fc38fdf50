"""The stage of static post-training int8."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from optkit.core.checks import check_count, check_share
from optkit.core.stage import Context, Outcome
from optkit.core.task import Task
from optkit.quantize.options import StaticOptions
from optkit.quantize.stages.calibrated import CalibratedInt8, Calibration

if TYPE_CHECKING:
    from torch import nn

    from optkit.quantize.sensitivity import LayerCosts


@dataclass(frozen=True, kw_only=True)
class StaticQuantization(StaticOptions, CalibratedInt8):
    """Post-training int8 for weights and activations, calibrated on train data (torchao PT2E).

    Attributes:
        target, observer, reduce_range, protect, equalize, smooth, rounding, correct_bias: see `StaticOptions`.
        batches, batch_size, min_int8_share: see `CalibratedInt8`.
        max_drop: how much accuracy on validation int8 may cost (0.005: half a point); as few layers as need be stay
            in float; null: all are int8, whatever it costs.
        sensitivity_examples: validation examples that the layers to keep are chosen on.
    """

    max_drop: float | None = None
    sensitivity_examples: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("sensitivity_examples", self.sensitivity_examples)
        if self.max_drop is not None:
            check_share("max_drop", self.max_drop)

    def apply(self, module: nn.Module, ctx: Context) -> Outcome:
        from optkit.measure.validation import Validation
        from optkit.quantize.mixed_precision import quantize_within
        from optkit.quantize.static import calibrate_static

        module, example, batches = module.eval(), ctx.task.example(2), self.calibration(ctx)
        if self.max_drop is None:
            return self.outcome(calibrate_static(module, example, batches, self).convert(self.observer), ctx)
        accuracy = Validation(ctx.task, self.sensitivity_examples, "accuracy")
        loss, drop = accuracy.by("loss"), self.max_drop
        within = quantize_within(
            module, example, batches, max_drop=drop, accuracy=accuracy, loss=loss, **self.keywords()
        )
        return self.outcome(within, ctx)

    def measure_layers(self, module: nn.Module, task: Task, seed: int) -> LayerCosts:
        """What int8 costs in every layer of a float model, calibrated as this stage does."""
        from optkit.measure.validation import Validation
        from optkit.quantize.sensitivity import cost_of_layers
        from optkit.quantize.static import calibrate_static

        batches = Calibration(task, self.batch_size, self.batches, seed)
        options = replace(self, rounding="nearest", correct_bias=False)
        calibrated = calibrate_static(module.eval(), task.example(2), batches, options)
        graph, loss = calibrated.choose(self.observer).graph, Validation(task, self.sensitivity_examples)
        return cost_of_layers(module, graph, batches, loss)
