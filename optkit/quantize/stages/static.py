"""The stage of static post-training int8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optkit.core.checks import check_choice, check_count, check_share
from optkit.core.stage import Context, Outcome
from optkit.core.task import Task
from optkit.quantize.arguments import ROUNDINGS
from optkit.quantize.stages.calibrated import CalibratedInt8, Calibration

if TYPE_CHECKING:
    from torch import nn

    from optkit.quantize.sensitivity import LayerCosts


@dataclass
class StaticQuantization(CalibratedInt8):
    """Post-training int8 for weights and activations, calibrated on train data (torchao PT2E).

    Attributes:
        target, observer, batches, batch_size, reduce_range, min_int8_share, protect: see `CalibratedInt8`.
        equalize: cross-layer equalization (Nagel et al., 2019).
        smooth: alpha of SmoothQuant for linear layers (Xiao et al., 2023), from 0 to 1; null: none.
        rounding: of weights: ``nearest`` or ``gptq`` (Frantar et al., 2023).
        correct_bias: take the mean error out of every bias (Nagel et al., 2019).
        max_drop: how much accuracy on validation int8 may cost (0.005: half a point); as few layers as need be stay
            in float; null: all are int8, whatever it costs.
        sensitivity_examples: validation examples that the layers to keep are chosen on.
    """

    equalize: bool = False
    smooth: float | None = None
    rounding: str = "nearest"
    correct_bias: bool = False
    max_drop: float | None = None
    sensitivity_examples: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("equalize", self.equalize, (True, False))
        check_choice("correct_bias", self.correct_bias, (True, False))
        check_choice("rounding", self.rounding, ROUNDINGS)
        check_count("sensitivity_examples", self.sensitivity_examples)
        if self.smooth is not None:
            check_share("smooth", self.smooth)
        if self.max_drop is not None:
            check_share("max_drop", self.max_drop)

    def apply(self, module: nn.Module, ctx: Context) -> Outcome:
        from optkit.measure.validation import Validation
        from optkit.quantize.mixed_precision import quantize_within
        from optkit.quantize.static import quantize_static

        module, example, batches = module.eval(), ctx.task.example(2), self.calibration(ctx)
        if self.max_drop is None:
            return self.outcome(quantize_static(module, example, batches, **self.options), ctx)
        accuracy = Validation(ctx.task, self.sensitivity_examples, "accuracy")
        judges = {"accuracy": accuracy, "loss": accuracy.by("loss")}
        quantized = quantize_within(module, example, batches, max_drop=self.max_drop, **judges, **self.options)
        return self.outcome(quantized, ctx)

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of `quantize_static` that this stage's fields give."""
        names = ("target", "observer", "reduce_range", "protect", "equalize", "smooth", "rounding", "correct_bias")
        return {name: getattr(self, name) for name in names}

    def measure_layers(self, module: nn.Module, task: Task, seed: int) -> LayerCosts:
        """What int8 costs in every layer of a float model, calibrated as this stage does."""
        from optkit.measure.validation import Validation
        from optkit.quantize.sensitivity import cost_of_layers
        from optkit.quantize.static import calibrate_static

        batches = Calibration(task, self.batch_size, self.batches, seed)
        options = self.options | {"rounding": "nearest", "correct_bias": False}
        calibrated = calibrate_static(module.eval(), task.example(2), batches, **options)
        graph, loss = calibrated.choose(self.observer).graph, Validation(task, self.sensitivity_examples)
        return cost_of_layers(module, graph, batches, loss)
