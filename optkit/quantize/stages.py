"""Quantization stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

from torch import Tensor, nn

from optkit.core.checks import check_choice, check_count, check_pattern, check_share
from optkit.core.engine import made_for
from optkit.core.errors import UserError
from optkit.core.macs import macs_by_operator
from optkit.core.probe import EXAMPLES
from optkit.core.stage import Context, Outcome, Premises
from optkit.core.task import Task
from optkit.engines import ENGINES
from optkit.measure.validation import Validation
from optkit.quantize.analysis import LayerCosts, cost_of_layers
from optkit.quantize.dynamic import (
    DYNAMIC_TARGETS,
    check_linears,
    describe_dynamic,
    quantize_dynamic,
    replay_dynamic,
)
from optkit.quantize.mixed import quantize_within
from optkit.quantize.proof import prove_int8
from optkit.quantize.pt2e import (
    OBSERVERS,
    REVISION,
    ROUNDINGS,
    TARGETS,
    Quantized,
    calibrate_static,
    definite_range,
    describe,
    quantize_static,
    replay_static,
)
from optkit.quantize.weight_only import (
    BITS,
    GROUP_SIZES,
    KERNELS,
    check_weight_only,
    quantize_weight_only,
    replay_weight_only,
)


@dataclass(frozen=True)
class Calibration:
    """Inputs to calibrate with, the same as often as they are read: a sample of the train split, not augmented.

    Attributes:
        task: its train split is read.
        batch_size: examples in a batch.
        batches: how many of them at most.
        seed: of the sample.
    """

    task: Task
    batch_size: int
    batches: int
    seed: int

    @classmethod
    def of(cls, ctx: Context, batches: int, batch_size: int) -> Calibration:
        """Of a stage's task, in a smoke run no more than its steps."""
        return cls(ctx.task, batch_size, min(batches, ctx.max_steps or batches), ctx.seed)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        found = self.task.batches("train", self.batch_size, seed=self.seed)
        return (batch.inputs for batch in islice(found, self.batches))

    @property
    def examples(self) -> int:
        """How many there are in all."""
        return min(self.batches * self.batch_size, self.task.size("train"))


@dataclass
class CalibratedInt8:
    """What post-training and quantization-aware int8 have in common: a target, a calibration, a proof.

    Attributes:
        target: the engine whose kernels the graph is annotated for: ``inductor``, ``onnxruntime`` or ``openvino``.
        observer: how an activation's range is chosen: ``minmax``, ``moving_average``, ``histogram`` (least squared
            error), ``percentile`` or ``entropy``.
        batches: calibration batches.
        batch_size: examples in each.
        reduce_range: 7 bits for weights; null: where this processor's int8 kernels would overflow with 8.
        min_int8_share: the share of MACs that must run in the engine's int8 kernels, or the stage fails and names the
            layers that do not; null: no share is asked for, and nothing is compiled for it.
        protect: patterns of layer paths that stay in float; products of attention are ``PATH.matmul``.
    """

    target: str = "inductor"
    observer: str = "histogram"
    batches: int = 32
    batch_size: int = 32
    reduce_range: bool | None = None
    min_int8_share: float | None = None
    protect: Sequence[str] = field(default_factory=list)

    surgery: ClassVar[str] = "quantize.calibrated/1"
    technique: ClassVar[str] = "quantize"
    needs: ClassVar[frozenset[str]] = frozenset({"float"})
    drops: ClassVar[frozenset[str]] = frozenset({"float"})

    @property
    def adds(self) -> frozenset[str]:
        return made_for(self.target)

    def __post_init__(self) -> None:
        check_choice("target", self.target, TARGETS)
        check_choice("observer", self.observer, OBSERVERS)
        check_count("batches", self.batches)
        check_count("batch_size", self.batch_size)
        check_choice("reduce_range", self.reduce_range, (None, True, False))
        if self.min_int8_share is not None and self.min_int8_share != 1:
            check_share("min_int8_share", self.min_int8_share)

    def depends_on(self, premises: Premises) -> bool:
        """What a null `reduce_range` means on this processor."""
        return definite_range(self.reduce_range)

    def check(self, module: nn.Module, task: Task) -> None:
        if self.min_int8_share is not None and (reason := ENGINES[self.target]().unavailable()):
            raise UserError(f"{self.target} does not work here: {reason}", key="min_int8_share")
        layers = {path.removesuffix(".weight") for path, x in module.named_parameters() if x.dim() > 1}
        for pattern in self.protect:
            # where products of attention are is known of the exported graph alone
            if not pattern.endswith("matmul"):
                check_pattern("protect", pattern, layers, "layer")

    def calibration(self, ctx: Context) -> Calibration:
        """The inputs to calibrate with."""
        return Calibration.of(ctx, self.batches, self.batch_size)

    def outcome(self, quantized: Quantized, ctx: Context) -> Outcome:
        """The int8 graph with its facts and its surgery, its int8 share proved if that is asked for."""
        facts = {"calibration_examples": self.calibration(ctx).examples} | describe(quantized)
        surgery = {
            "activations": quantized.activations,
            "reduce_range": quantized.reduce_range,
            "target": quantized.target,
            "protect": list(quantized.protect),
            "smoothed": list(quantized.smoothed),
            "revision": REVISION,
        }
        if self.min_int8_share is not None:
            example = ctx.task.example(2)
            facts["int8_share"] = prove_int8(quantized.module, example, self.target, self.min_int8_share)
        return Outcome(quantized.module, facts, surgery=surgery)

    @staticmethod
    def replay(module: nn.Module, surgery: dict[str, Any], example: tuple[Tensor, ...]) -> nn.Module:
        return replay_static(module, example, **({"revision": 1} | surgery))


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
        batches = Calibration(task, self.batch_size, self.batches, seed)
        options = self.options | {"rounding": "nearest", "correct_bias": False}
        calibrated = calibrate_static(module.eval(), task.example(2), batches, **options)
        graph, loss = calibrated.choose(self.observer).graph, Validation(task, self.sensitivity_examples)
        return cost_of_layers(module, graph, batches, loss)


@dataclass
class DynamicQuantization:
    """int8 for linear layers, activations scaled at every call (torchao PT2E); needs no data.

    Attributes:
        target: the engine whose kernels the graph is annotated for.
        reduce_range: 7 bits for weights; null: where this processor's int8 kernels would overflow with 8.
    """

    target: str = "inductor"
    reduce_range: bool | None = None

    surgery: ClassVar[str] = "quantize.dynamic/1"
    technique: ClassVar[str] = "quantize"
    needs: ClassVar[frozenset[str]] = frozenset({"float"})
    drops: ClassVar[frozenset[str]] = frozenset({"float"})

    @property
    def adds(self) -> frozenset[str]:
        return made_for(self.target)

    def __post_init__(self) -> None:
        check_choice("target", self.target, DYNAMIC_TARGETS)
        check_choice("reduce_range", self.reduce_range, (None, True, False))

    def depends_on(self, premises: Premises) -> bool:
        """What a null `reduce_range` means on this processor."""
        return definite_range(self.reduce_range)

    def check(self, module: nn.Module, task: Task) -> None:
        check_linears(module)

    def apply(self, module: nn.Module, ctx: Context) -> Outcome:
        example = ctx.task.example(EXAMPLES)
        found = quantize_dynamic(module.eval(), example, target=self.target, reduce_range=self.reduce_range)
        facts = describe_dynamic(found.module) | {"weight_bits": 7 if found.reduce_range else 8}
        return Outcome(
            found.module,
            facts,
            surgery={"reduce_range": found.reduce_range, "target": found.target, "revision": REVISION},
        )

    @staticmethod
    def replay(module: nn.Module, surgery: dict[str, Any], example: tuple[Tensor, ...]) -> nn.Module:
        target, revision = surgery.get("target", "inductor"), surgery.get("revision", 1)
        return replay_dynamic(module, example, surgery["reduce_range"], target, revision)


@dataclass
class WeightOnlyQuantization:
    """int8 or int4 weights for linear layers; the products stay in float (bfloat16). Runs on eager and inductor.

    Attributes:
        bits: 8 (a scale for each output) or 4 (a scale and an offset for each group of inputs).
        group_size: of 4-bit weights: 32, 64, 128 or 256 inputs.
        protect: patterns of layer paths that stay as they are.
        rounding: ``nearest``, or ``gptq`` (Frantar et al., 2023), which reads train data.
        batches, batch_size: how much of it.
    """

    bits: int = 8
    group_size: int = 64
    protect: Sequence[str] = field(default_factory=list)
    rounding: str = "nearest"
    batches: int = 32
    batch_size: int = 32

    surgery: ClassVar[str] = "quantize.weight_only/1"
    technique: ClassVar[str] = "quantize"
    needs: ClassVar[frozenset[str]] = frozenset({"float"})
    adds: ClassVar[frozenset[str]] = frozenset({"weight_only"})
    drops: ClassVar[frozenset[str]] = frozenset({"float"})

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise UserError(f"no weights of {self.bits} bits", key="bits", value=self.bits, fix="8 or 4")
        if self.group_size not in GROUP_SIZES:
            fix = f"one of {', '.join(map(str, GROUP_SIZES))}"
            raise UserError(f"no groups of {self.group_size}", key="group_size", value=self.group_size, fix=fix)
        check_choice("rounding", self.rounding, ROUNDINGS)
        check_count("batches", self.batches)
        check_count("batch_size", self.batch_size)

    def check(self, module: nn.Module, task: Task) -> None:
        check_weight_only(module, self.bits, self.group_size, tuple(self.protect))

    def apply(self, module: nn.Module, ctx: Context) -> Outcome:
        batches = Calibration.of(ctx, self.batches, self.batch_size)
        found = quantize_weight_only(
            module.eval(),
            bits=self.bits,
            group_size=self.group_size,
            protect=tuple(self.protect),
            batches=batches if self.rounding == "gptq" else None,
        )
        macs = macs_by_operator(found.module, ctx.task.example(2))
        facts = {
            "weight_bits": self.bits,
            "rounding": self.rounding,
            "layers": len(found.layers),
            "left_in_float": found.left,
            "arithmetic": "bfloat16",
            "macs_share": sum(macs.get(kernel, 0) for kernel in KERNELS) / max(sum(macs.values()), 1),
        }
        surgery = {"layers": list(found.layers), "bits": self.bits, "group_size": self.group_size}
        return Outcome(found.module, facts, surgery=surgery)

    @staticmethod
    def replay(module: nn.Module, surgery: dict[str, Any], example: tuple[Tensor, ...]) -> nn.Module:
        return replay_weight_only(module, surgery["layers"], surgery["bits"], surgery["group_size"])
