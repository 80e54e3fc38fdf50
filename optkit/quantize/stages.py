"""Quantization stages."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

from torch import Tensor, nn

from optkit.core.checks import check_choice, check_count
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
        reduce_range: 7 bits for activations; null: where this processor's int8 kernels would overflow without.
    """

    target: str = "inductor"
    batches: int = 32
    batch_size: int = 32
    reduce_range: bool | None = None

    technique: ClassVar[str] = "quantize"
    needs: ClassVar[frozenset[str]] = frozenset({"float"})
    adds: ClassVar[frozenset[str]] = frozenset({"int8"})
    drops: ClassVar[frozenset[str]] = frozenset({"float"})

    def __post_init__(self) -> None:
        check_choice("target", self.target, TARGETS)
        check_count("batches", self.batches)
        check_count("batch_size", self.batch_size)
        check_choice("reduce_range", self.reduce_range, (None, True, False))

    def apply(self, module: nn.Module, ctx: Context) -> Outcome:
        # shuffled but not augmented: a sample of what the model will see
        batches = ctx.task.batches("train", self.batch_size, seed=ctx.seed)
        limit = min(self.batches, ctx.max_steps or self.batches)
        inputs = (b.inputs for b in islice(batches, limit))
        quantized = quantize_static(module.eval(), ctx.task.example(2), inputs, reduce_range=self.reduce_range)
        facts = {"calibration_examples": min(limit * self.batch_size, ctx.task.size("train"))} | describe(quantized)
        surgery = {"activations": quantized.activations, "reduce_range": quantized.reduce_range}
        return Outcome(quantized.module, facts, surgery=surgery)

    @staticmethod
    def replay(module: nn.Module, surgery: dict[str, Any], example: tuple[Tensor, ...]) -> nn.Module:
        return replay_static(module, example, surgery["activations"], surgery["reduce_range"])
