"""The stage of static post-training int8."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from optkit.core.checks import check_choice, check_count, check_positive, is_number
from optkit.core.errors import StageError, UserError
from optkit.core.stage import Context, KeyContext, Outcome
from optkit.core.task import Task
from optkit.quantize.options import StaticOptions
from optkit.quantize.stages.calibrated import CalibratedInt8, Calibration

if TYPE_CHECKING:
    from torch import Tensor, nn

    from optkit.quantize.sensitivity import LayerCosts

FEWEST, FASTEST = "fewest", "fastest"
MILLISECONDS = re.compile(r"([0-9.]+) ?ms")


@dataclass(frozen=True, kw_only=True)
class StaticQuantization(StaticOptions, CalibratedInt8):
    """Post-training int8 for weights and activations, calibrated on train data (torchao PT2E).

    Attributes:
        target, observer, reduce_range, protect, equalize, smooth, rounding, correct_bias: see `StaticOptions`.
        batches, batch_size, min_int8_share: see `CalibratedInt8`.
        max_drop: by how much the task's first metric on validation may be worse in int8, in its own unit (of shares,
            such as accuracy, 0.005 is half a point); as few layers as need be stay in float; null: all are int8.
        allocation: with max_drop: ``fewest`` layers stay in float, or those with which the model is ``fastest``, by
            their measured times in int8 and in float.
        max_latency: instead of max_drop: share of the float model's latency on the target's engine, 0.6, or a time,
            ``2.5 ms``; the layers whose rounding costs most loss stay in float, as far as the time allows.
        latency_batch_size: at which layers and models are timed; null: 1.
        sensitivity_examples: validation examples that the layers to keep are chosen on.
    """

    max_drop: float | None = None
    allocation: str = FEWEST
    max_latency: float | str | None = None
    latency_batch_size: int | None = None
    sensitivity_examples: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("sensitivity_examples", self.sensitivity_examples)
        check_choice("allocation", self.allocation, (FEWEST, FASTEST))
        if self.max_drop is not None:
            check_positive("max_drop", self.max_drop)
        elif self.allocation == FASTEST:
            fix = "max_drop=0.005, or allocation=fewest"
            raise UserError("it needs a limit to keep", key="allocation", value=FASTEST, fix=fix)
        if self.max_latency is not None:
            self._check_latency()
        if self.latency_batch_size is not None:
            check_count("latency_batch_size", self.latency_batch_size)
            if not self._times:
                fix = "allocation=fastest, or max_latency=0.6"
                raise UserError("no latency is measured", key="latency_batch_size", fix=fix)

    def _check_latency(self) -> None:
        ms = self._milliseconds
        if ms is None and not (is_number(self.max_latency) and 0 < self.max_latency < 1):
            fix = "a share of the float latency below 1, such as 0.6, or a time such as '2.5 ms'"
            raise UserError(f"{self.max_latency!r} is no latency", key="max_latency", value=self.max_latency, fix=fix)
        if self.max_drop is not None:
            message, fix = "max_drop chooses the layers in float, too", "max_drop=null, or max_latency=null"
            raise UserError(message, key="max_latency", value=self.max_latency, fix=fix)

    @property
    def _milliseconds(self) -> float | None:
        """The limit, if it is a time."""
        found = MILLISECONDS.fullmatch(self.max_latency) if isinstance(self.max_latency, str) else None
        return float(found[1]) if found and found[1].count(".") < 2 and found[1].strip("0.") else None

    @property
    def _times(self) -> bool:
        return self.allocation == FASTEST or self.max_latency is not None

    @property
    def in_all_processes(self) -> bool:  # type: ignore[override]
        # timings are each process's own
        return not self._times

    def depends_on(self, context: KeyContext) -> list[Any]:
        """That of `CalibratedInt8`; the machine and the engine, if layers are timed."""
        found = super().depends_on(context)
        if not self._times:
            return found
        from optkit.engines import ENGINES
        from optkit.measure.alone import machine_key
        from optkit.quantize.graph.targets import find_target

        return [*found, machine_key(ENGINES[find_target(self.target).engine](), context.threads)]

    def check(self, module: nn.Module, task: Task) -> None:
        super().check(module, task)
        if self._times:
            from optkit.quantize.layer_times import engine_of

            engine_of(self.target)

    def apply(self, module: nn.Module, ctx: Context) -> Outcome:
        from optkit.measure.validation import Validation
        from optkit.quantize.mixed_precision import quantize_within
        from optkit.quantize.static import calibrate_static

        module, example, batches = module.eval(), ctx.task.example(2), self.calibration(ctx)
        if self.max_latency is not None:
            return self._to_latency(module, ctx)
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
            times=self._timing(ctx) if self.allocation == FASTEST else None,
            **self.keywords(),
        )
        return self.outcome(within, ctx)

    def _to_latency(self, module: nn.Module, ctx: Context) -> Outcome:
        import torch

        from optkit.measure.validation import Validation
        from optkit.quantize.layer_times import AgainstFloat
        from optkit.quantize.mixed_precision import quantize_to_latency

        against = AgainstFloat(module, self._timed_example(ctx), self.target, torch.get_num_threads(), ctx.seed)
        limit = self._milliseconds
        if limit is None:
            share = float(self.max_latency or 1)
        elif (share := limit / (takes := against.float_ms())) >= 1:
            message = f"the float model takes {takes:.3g} ms already"
            raise StageError(message, key="max_latency", value=self.max_latency, fix="ask for less, or leave int8 out")
        quantized, facts = quantize_to_latency(
            module,
            ctx.task.example(2),
            self.calibration(ctx),
            self,
            max_latency=share,
            loss=Validation(ctx.task, self.sensitivity_examples),
            times=self._timing(ctx),
            ratio=against,
        )
        made = self.outcome(quantized, ctx)
        return replace(made, facts=made.facts | {"latency": facts | against.facts()})

    def _timing(self, ctx: Context) -> Any:
        import torch

        from optkit.quantize.layer_times import time_layers

        return partial(time_layers, example=self._timed_example(ctx), threads=torch.get_num_threads())

    def _timed_example(self, ctx: Context) -> tuple[Tensor, ...]:
        return ctx.task.example(self.latency_batch_size or 1)

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
