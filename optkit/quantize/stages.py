"""Quantization stages."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

from torch import Tensor, nn

from optkit.core.errors import UserError, did_you_mean
from optkit.core.stage import Context, Outcome
from optkit.quantize.pt2e import describe, quantize_static, replay_static

TARGETS = ("inductor",)


@dataclass
class StaticQuantization:
    """Post-training int8 for weights and activations, calibrated on train data (torchao PT2E).

    Attributes:
        target: the engine whose kernels the graph is annotated for.
        batches: calibration batches.
        batch_size: examples in each.
    """

    target: str = "inductor"
    batches: int = 32
    batch_size: int = 32

    technique: ClassVar[str] = "quantize"
    needs: ClassVar[frozenset[str]] = frozenset({"float"})
    adds: ClassVar[frozenset[str]] = frozenset({"int8"})
    drops: ClassVar[frozenset[str]] = frozenset({"float"})

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            fix = did_you_mean(str(self.target), TARGETS)
            raise UserError(f"no int8 target '{self.target}'", key="target", value=self.target, fix=fix)
        for name in ("batches", "batch_size"):
            if not isinstance(value := getattr(self, name), int) or value < 1:
                raise UserError(f"{value!r} is not a whole number of at least 1", key=name, value=value)

    def apply(self, module: nn.Module, ctx: Context) -> Outcome:
        # shuffled but not augmented: a sample of what the model will see
        batches = ctx.task.batches("train", self.batch_size, seed=ctx.seed)
        limit = min(self.batches, ctx.max_steps or self.batches)
        quantized = quantize_static(module.eval(), ctx.task.example(2), (b.inputs for b in islice(batches, limit)))
        facts = {"calibration_examples": min(limit * self.batch_size, ctx.task.size("train"))} | describe(quantized)
        return Outcome(quantized.module, facts, surgery={"activations": quantized.activations})

    @staticmethod
    def replay(module: nn.Module, surgery: dict[str, Any], example: tuple[Tensor, ...]) -> nn.Module:
        return replay_static(module, example, surgery["activations"])
