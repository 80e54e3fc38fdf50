"""The stage of static post-training int8."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from optkit.core.checks import check_count, check_positive
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
        max_drop: by how much the task's first metric on validation may be worse in int8, in its own unit (of shares,
            such as accuracy, 0.005 is half a point); as few layers as need be stay in float; null: all are int8.
        sensitivity_examples: validation examples that the layers to keep are chosen on.
    """

    max_drop: float | None = None
    sensitivity_examples: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("sensitivity_examples", self.sensitivity_examples)
        if self.max_drop is not None:
            check_positive("max_drop", self.max_drop)

    def apply(self, module: nn.Module, ctx: Context) -> Outcome:
        from optkit.measure.validation import Validation
        from optkit.quantize.mixed_precision import quantize_within
        from optkit.quantize.static import calibrate_static

        module, example, batches = module.eval(), ctx.task.example(2), self.calibration(ctx)
        if self.max_drop is None:
            return self.outcome(calibrate_static(module, example, batches, self).convert(self.observer), ctx)
        metric = Validation(ctx.task, self.sensitivity_examples, "metric")
        within = quantize_within(
            module,
            example,
            batches,
            max_drop=self.max_drop,
            evaluate=metric,
            higher_is_better=metric.higher_is_better,
            loss=metric.by("loss"),
            **self.keywords(),
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
