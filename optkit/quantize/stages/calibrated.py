"""What post-training and quantization-aware int8 share: a calibration, a target and a proof."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

from optkit.core.checks import check_count, check_pattern, check_share
from optkit.core.engine import made_for
from optkit.core.errors import UserError
from optkit.core.processes import current
from optkit.core.seeds import derive_seed
from optkit.core.stage import Context, KeyContext, Outcome
from optkit.core.task import Task, model_inputs
from optkit.engines.registry import ENGINES
from optkit.quantize.graph.targets.registry import TARGET_KEYS, code_of_target, find_target, made_by, saved_target
from optkit.quantize.options import REVISION, Int8Options, definite_range
from optkit.quantize.stages.generation import refuse_generative

if TYPE_CHECKING:
    from torch import Tensor, nn

    from optkit.quantize.static import Quantized


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
        found = self.task.batches("train", self.batch_size, seed=derive_seed(self.seed, "calibration"))
        return (model_inputs(self.task, batch) for batch in islice(found, self.batches))

    @property
    def examples(self) -> int:
        """How many there are in all."""
        return min(self.batches * self.batch_size, self.task.size("train"))


@dataclass(frozen=True, kw_only=True)
class CalibratedInt8(Int8Options):
    """What post-training and quantization-aware int8 have in common: a target, a calibration, a proof.

    Attributes:
        target, observer, reduce_range, protect: see `Int8Options`.
        batches: calibration batches.
        batch_size: examples in each.
        min_int8_share: the share of MACs that must run in the engine's int8 kernels, or the stage fails and names the
            layers that do not; null: no share is asked for, and nothing is compiled for it.
    """

    batches: int = 32
    batch_size: int = 32
    min_int8_share: float | None = None

    surgery: ClassVar[str] = "quantize.calibrated/1"
    technique: ClassVar[str] = "quantize"
    needs: ClassVar[frozenset[str]] = frozenset({"float"})
    drops: ClassVar[frozenset[str]] = frozenset({"float"})
    in_all_processes: ClassVar[bool] = True

    @property
    def adds(self) -> frozenset[str]:
        return made_for(self.target)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("batches", self.batches)
        check_count("batch_size", self.batch_size)
        if self.min_int8_share is not None and self.min_int8_share != 1:
            check_share("min_int8_share", self.min_int8_share)

    def depends_on(self, context: KeyContext) -> list[Any]:
        """What a null `reduce_range` means here, the code of the target, and the threads of the calibration."""
        return [definite_range(self.reduce_range), code_of_target(self.target), context.on_cpu]

    def check(self, module: nn.Module, task: Task) -> None:
        refuse_generative(module, "int8 of activations by calibration")
        if self.min_int8_share is not None:
            engine = ENGINES.find(find_target(self.target).engine, "target")()
            if reason := engine.unavailable():
                raise UserError(f"{engine.name} does not work here: {reason}", key="min_int8_share")
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
        from optkit.quantize.stages.proof import prove_int8
        from optkit.quantize.static import describe

        facts = {"calibration_examples": self.calibration(ctx).examples} | describe(quantized)
        surgery = {
            "activations": quantized.activations,
            "reduce_range": quantized.reduce_range,
            "target": quantized.target,
            "protect": list(quantized.protect),
            "smoothed": list(quantized.smoothed),
            "revision": REVISION,
        } | made_by(quantized.target)
        if self.min_int8_share is not None:
            prove = partial(prove_int8, quantized.module, ctx.task.example(2), self.target, self.min_int8_share)
            facts["int8_share"] = current().first(prove)
        return Outcome(quantized.module, facts, surgery=surgery)

    @staticmethod
    def replay(module: nn.Module, surgery: dict[str, Any], example: tuple[Tensor, ...]) -> nn.Module:
        from optkit.quantize.static import replay_static

        target = saved_target(surgery)
        known = {name: value for name, value in surgery.items() if name not in TARGET_KEYS}
        return replay_static(module, example, **({"revision": 1} | known), target=target)
