"""The stage of weight-only quantization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from optkit.core.checks import check_choice, check_count
from optkit.core.errors import UserError
from optkit.core.stage import Context, KeyContext, Outcome
from optkit.core.task import Task
from optkit.quantize.options import BITS, GROUP_SIZES, ROUNDINGS
from optkit.quantize.stages.calibrated import Calibration

if TYPE_CHECKING:
    from torch import Tensor, nn


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

    def depends_on(self, context: KeyContext) -> dict[str, Any] | None:
        """The threads, if data is read."""
        return context.on_cpu if self.rounding == "gptq" else None

    def check(self, module: nn.Module, task: Task) -> None:
        from optkit.quantize.weight_only import check_weight_only

        check_weight_only(module, self.bits, self.group_size, tuple(self.protect))

    def apply(self, module: nn.Module, ctx: Context) -> Outcome:
        from optkit.core.macs import macs_by_operator
        from optkit.quantize.weight_only import KERNELS, quantize_weight_only

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
        from optkit.quantize.weight_only import replay_weight_only

        return replay_weight_only(module, surgery["layers"], surgery["bits"], surgery["group_size"])
