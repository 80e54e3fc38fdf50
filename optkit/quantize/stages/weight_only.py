"""The stage of weight-only quantization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from optkit.core.checks import check_choice, check_count, check_positive
from optkit.core.errors import UserError
from optkit.core.packed_weights import SIMULATED_IN_TORCH, WEIGHT_ONLY
from optkit.core.stage import Context, KeyContext, Outcome
from optkit.core.task import TOKENS, Task
from optkit.quantize.stages.calibrated import Calibration
from optkit.quantize.weights.scheme import AUTO, ROUNDINGS, Scheme, check_scaling, reads_data, vocabulary_scheme

if TYPE_CHECKING:
    from torch import Tensor, nn

    from optkit.quantize.weight_only import WeightOnly


@dataclass
class WeightOnlyQuantization:
    """Weights of few bits for linear layers, embeddings and heads; activations stay in float.

    Attributes:
        bits: 8, 4 or 3.
        group_size: how many inputs share a scale; null: all inputs of an output; ``auto``: null for 8 bits, 64 for
            fewer.
        symmetric: whether zero points are 0; null: for 8 bits they are.
        embeddings, head: whether to quantize these; where they are tied, both or neither.
        vocabulary_bits: of embeddings and heads; null: those of the other layers.
        bits_of: patterns of paths of layers that have other bits, ``{"*.down_proj": 8}``; the last that matches counts.
        protect: patterns of layer paths that stay as they are.
        rounding: ``nearest``; or by train data: ``gptq`` (Frantar et al., 2023), ``awq`` (Lin et al., 2024),
            ``gptq+awq``.
        smooth: alpha of SmoothQuant (Xiao et al., 2023), for engines that round activations at every call; null: none.
        activation_order, damping: of GPTQ.
        batches, batch_size: how much data is read; a null batch_size is 1 for language models, 32 for others.
        max_drop: by how much the task's first metric on validation may be worse, in its own unit; the layers that cost
            most have 8 bits, and where all have 8 already they stay in float; null: all are quantized.
        average_bits: of the weights, at most, instead of `max_drop`: each layer has `bits`, 8, or stays in float, with
            the least predicted loss (`allocate_weights`); null: all have `bits`.
        sensitivity_examples: validation examples that the bits of layers are chosen on; null: 16 of language models,
            1,000 of others.
    """

    bits: int = 8
    group_size: int | str | None = "auto"
    symmetric: bool | None = None
    embeddings: bool = False
    head: bool = False
    vocabulary_bits: int | None = None
    bits_of: Mapping[str, int] = field(default_factory=dict)
    protect: Sequence[str] = field(default_factory=list)
    rounding: str = "nearest"
    smooth: float | None = None
    activation_order: bool = True
    damping: float = 0.01
    batches: int = 32
    batch_size: int | None = None
    max_drop: float | None = None
    average_bits: float | None = None
    sensitivity_examples: int | None = None

    surgery: ClassVar[str] = "quantize.weight_only/2"
    technique: ClassVar[str] = "quantize"
    needs: ClassVar[frozenset[str]] = frozenset({"float"})
    drops: ClassVar[frozenset[str]] = frozenset({"float"})

    @property
    def adds(self) -> frozenset[str]:
        runs_in_torch = all(scheme.has_kernel for scheme in self._schemes())
        return frozenset({WEIGHT_ONLY} if runs_in_torch else {WEIGHT_ONLY, SIMULATED_IN_TORCH})

    def __post_init__(self) -> None:
        self._schemes()
        check_choice("rounding", self.rounding, ROUNDINGS)
        check_scaling(self.rounding, self.smooth)
        for key in ("embeddings", "head", "activation_order"):
            check_choice(key, getattr(self, key), (True, False))
        check_positive("damping", self.damping)
        check_count("batches", self.batches)
        for key in ("batch_size", "sensitivity_examples"):
            if getattr(self, key) is not None:
                check_count(key, getattr(self, key))
        for key in ("max_drop", "average_bits"):
            if getattr(self, key) is not None:
                check_positive(key, getattr(self, key))
        if self.max_drop is not None and self.average_bits is not None:
            message, fix = "max_drop chooses the bits of layers, too", "max_drop=null, or average_bits=null"
            raise UserError(message, key="average_bits", value=self.average_bits, fix=fix)

    def depends_on(self, context: KeyContext) -> dict[str, Any] | None:
        """The threads, if data is read."""
        reads = self.max_drop is not None or self.average_bits is not None or reads_data(self.rounding, self.smooth)
        return context.on_cpu if reads else None

    def check(self, module: nn.Module, task: Task) -> None:
        from optkit.quantize.weight_only import check_weight_only

        check_weight_only(module, **self._which())

    def apply(self, module: nn.Module, ctx: Context) -> Outcome:
        from optkit.core.macs import macs_by_operator
        from optkit.quantize.weight_only import quantize_weight_only
        from optkit.quantize.weights.layers import KERNELS

        texts = ctx.task.output_kind == TOKENS
        batch_size = self.batch_size or (1 if texts else 32)
        batches = Calibration.of(ctx, self.batches, batch_size)
        options = self._which() | {
            "rounding": self.rounding,
            "smooth": self.smooth,
            "batches": batches if reads_data(self.rounding, self.smooth) else None,
            "activation_order": self.activation_order,
            "damping": self.damping,
            "workdir": ctx.workdir,
        }
        if self.average_bits is not None:
            found = self._allocated(module.eval(), ctx.task, self.average_bits, options)
        elif self.max_drop is None:
            found = quantize_weight_only(module, in_place=True, **options)
        else:
            found = self._within(module.eval(), ctx.task, self.max_drop, options)
        # of texts, a few tokens tell the share, and take no room for logits
        example = (ctx.task.example(1)[0][:, :16],) if texts else ctx.task.example(2)
        macs = macs_by_operator(found.module, example)
        facts = {
            "weight_bits": self.bits,
            "vocabulary_bits": self.vocabulary_bits,
            "other_bits": {path: scheme.bits for path, scheme in found.others.items()},
            "group_size": found.scheme.group_size,
            "symmetric": found.scheme.symmetric,
            "rounding": self.rounding,
            "smooth": self.smooth,
            "layers": len(found.layers),
            "embeddings": len(found.embeddings),
            "left_in_float": found.left,
            "torch_arithmetic": "bfloat16" if found.scheme.has_kernel else "float32 of dequantized weights",
            "macs_share": sum(macs.get(kernel, 0) for kernel in KERNELS) / max(sum(macs.values()), 1),
        }
        resumed_s = 0.0
        if found.report is not None:
            report = asdict(found.report)
            resumed_s = report.pop("resumed_s")
            facts |= {"calibration_examples": batches.examples} | report
        surgery = {"layers": list(found.layers), **asdict(found.scheme)}
        surgery |= {"embeddings": list(found.embeddings), "tied": found.tied}
        if found.others:
            surgery |= {"others": {path: asdict(scheme) for path, scheme in found.others.items()}}
        return Outcome(found.module, facts, surgery=surgery, resumed_s=resumed_s)

    @staticmethod
    def replay(module: nn.Module, surgery: dict[str, Any], example: tuple[Tensor, ...]) -> nn.Module:
        from optkit.quantize.weight_only import replay_weight_only

        return replay_weight_only(module, **surgery)

    def _within(self, module: nn.Module, task: Task, max_drop: float, options: dict[str, Any]) -> WeightOnly:
        """With more bits where the quality needs them."""
        from optkit.measure.validation import Validation
        from optkit.quantize.mixed_weights import quantize_weights_within

        metric = Validation(task, self._examples(task), "metric")
        return quantize_weights_within(
            module,
            max_drop=max_drop,
            evaluate=metric,
            losses=metric.losses,
            higher_is_better=metric.higher_is_better,
            **options,
        )

    def _allocated(self, module: nn.Module, task: Task, average_bits: float, options: dict[str, Any]) -> WeightOnly:
        """With so many bits on average."""
        from optkit.measure.validation import Validation
        from optkit.quantize.mixed_weights import allocate_weights

        losses = Validation(task, self._examples(task)).losses
        return allocate_weights(module, average_bits=average_bits, losses=losses, in_place=True, **options)

    def _examples(self, task: Task) -> int:
        return self.sensitivity_examples or (16 if task.output_kind == TOKENS else 1000)

    def _schemes(self) -> list[Scheme]:
        other = vocabulary_scheme(self.vocabulary_bits, self.embeddings, self.head)
        own = [Scheme.of(bits, AUTO, None, "bits_of") for bits in self.bits_of.values()]
        return [Scheme.of(self.bits, self.group_size, self.symmetric), *([other] if other else []), *own]

    def _which(self) -> dict[str, Any]:
        """The layers, and what their weights become, as arguments of `quantize_weight_only`."""
        names = ("bits", "group_size", "symmetric", "embeddings", "head", "vocabulary_bits")
        which = {name: getattr(self, name) for name in names}
        return which | {"bits_of": dict(self.bits_of), "protect": tuple(self.protect)}
