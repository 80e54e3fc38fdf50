"""Quantization stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

from torch import Tensor, nn

from optkit.core.checks import check_choice, check_count, check_share
from optkit.core.engine import made_for
from optkit.core.errors import UserError
from optkit.core.macs import macs_by_operator
from optkit.core.stage import Context, Outcome
from optkit.core.task import Task
from optkit.engines import ENGINES
from optkit.quantize.dynamic import (
    DYNAMIC_TARGETS,
    check_linears,
    describe_dynamic,
    quantize_dynamic,
    replay_dynamic,
)
from optkit.quantize.proof import prove_int8
from optkit.quantize.pt2e import OBSERVERS, TARGETS, Quantized, describe, quantize_static, replay_static
from optkit.quantize.weight_only import (
    BITS,
    GROUP_SIZES,
    KERNELS,
    check_weight_only,
    quantize_weight_only,
    replay_weight_only,
)


@dataclass
class StaticQuantization:
    """Post-training int8 for weights and activations, calibrated on train data (torchao PT2E).

    Attributes:
        target: the engine whose kernels the graph is annotated for: ``inductor``, ``onnxruntime`` or ``openvino``.
        observer: how an activation's range is chosen: ``minmax``, ``moving_average``, ``histogram`` (least squared
            error), ``percentile`` or ``entropy``.
        batches: calibration batches.
        batch_size: examples in each.
        reduce_range: 7 bits for activations; null: where this processor's int8 kernels would overflow without.
        min_int8_share: the share of MACs that must run in the engine's int8 kernels, or the stage fails and names the
            layers that do not; null: no share is asked for, and nothing is compiled for it.
    """

    target: str = "inductor"
    observer: str = "histogram"
    batches: int = 32
    batch_size: int = 32
    reduce_range: bool | None = None
    min_int8_share: float | None = None

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

    def check(self, module: nn.Module, task: Task) -> None:
        if self.min_int8_share is not None and (reason := ENGINES[self.target]().unavailable()):
            raise UserError(f"{self.target} does not work here: {reason}", key="min_int8_share")

    def apply(self, module: nn.Module, ctx: Context) -> Outcome:
        quantized = quantize_static(
            module.eval(),
            ctx.task.example(2),
            self.calibration(ctx),
            target=self.target,
            observer=self.observer,
            reduce_range=self.reduce_range,
        )
        return self.outcome(quantized, ctx)

    def calibration(self, ctx: Context) -> Iterator[tuple[Tensor, ...]]:
        """The inputs to calibrate with: shuffled but not augmented, a sample of what the model will see."""
        batches = ctx.task.batches("train", self.batch_size, seed=ctx.seed)
        return (batch.inputs for batch in islice(batches, self._limit(ctx)))

    def _limit(self, ctx: Context) -> int:
        return min(self.batches, ctx.max_steps or self.batches)

    def outcome(self, quantized: Quantized, ctx: Context) -> Outcome:
        """The int8 graph with its facts and its surgery, its int8 share proved if that is asked for."""
        examples = min(self._limit(ctx) * self.batch_size, ctx.task.size("train"))
        facts = {"calibration_examples": examples} | describe(quantized)
        surgery = {
            "activations": quantized.activations,
            "reduce_range": quantized.reduce_range,
            "target": quantized.target,
        }
        if self.min_int8_share is not None:
            example = ctx.task.example(2)
            facts["int8_share"] = prove_int8(quantized.module, example, self.target, self.min_int8_share)
        return Outcome(quantized.module, facts, surgery=surgery)

    @staticmethod
    def replay(module: nn.Module, surgery: dict[str, Any], example: tuple[Tensor, ...]) -> nn.Module:
        target = surgery.get("target", "inductor")
        return replay_static(module, example, surgery["activations"], surgery["reduce_range"], target)


@dataclass
class DynamicQuantization:
    """int8 for linear layers, activations scaled at every call (torchao PT2E); needs no data.

    Attributes:
        target: the engine whose kernels the graph is annotated for.
        reduce_range: 7 bits for activations; null: where this processor's int8 kernels would overflow without.
    """

    target: str = "inductor"
    reduce_range: bool | None = None

    technique: ClassVar[str] = "quantize"
    needs: ClassVar[frozenset[str]] = frozenset({"float"})
    drops: ClassVar[frozenset[str]] = frozenset({"float"})

    @property
    def adds(self) -> frozenset[str]:
        return made_for(self.target)

    def __post_init__(self) -> None:
        check_choice("target", self.target, DYNAMIC_TARGETS)
        check_choice("reduce_range", self.reduce_range, (None, True, False))

    def check(self, module: nn.Module, task: Task) -> None:
        check_linears(module)

    def apply(self, module: nn.Module, ctx: Context) -> Outcome:
        example = ctx.task.example(2)
        found = quantize_dynamic(module.eval(), example, target=self.target, reduce_range=self.reduce_range)
        facts = describe_dynamic(found.module) | {"activation_bits": 7 if found.reduce_range else 8}
        return Outcome(found.module, facts, surgery={"reduce_range": found.reduce_range})

    @staticmethod
    def replay(module: nn.Module, surgery: dict[str, Any], example: tuple[Tensor, ...]) -> nn.Module:
        return replay_dynamic(module, example, surgery["reduce_range"])


@dataclass
class WeightOnlyQuantization:
    """int8 or int4 weights for linear layers; the products stay in float (bfloat16). Runs on eager and inductor.

    Attributes:
        bits: 8 (a scale for each output) or 4 (a scale and an offset for each group of inputs).
        group_size: of 4-bit weights: 32, 64, 128 or 256 inputs.
        protect: patterns of layer paths that stay as they are.
    """

    bits: int = 8
    group_size: int = 64
    protect: Sequence[str] = field(default_factory=list)

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

    def check(self, module: nn.Module, task: Task) -> None:
        check_weight_only(module, self.bits, self.group_size, tuple(self.protect))

    def apply(self, module: nn.Module, ctx: Context) -> Outcome:
        found = quantize_weight_only(
            module.eval(), bits=self.bits, group_size=self.group_size, protect=tuple(self.protect)
        )
        macs = macs_by_operator(found.module, ctx.task.example(2))
        facts = {
            "weight_bits": self.bits,
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
