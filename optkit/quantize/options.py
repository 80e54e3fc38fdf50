"""The options of calibrated int8: functions, stages and recipes take them from here, and they are checked here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from optkit.core.checks import check_choice, check_share
from optkit.core.environment import cpu
from optkit.quantize.graph.targets.registry import check_target

OBSERVERS = ("minmax", "moving_average", "histogram", "percentile", "entropy")
ROUNDINGS = ("nearest", "gptq")
# 2: computed weights are folded, padding has numbers, and one-dimensional convolutions are int8 on inductor
# 3: what is written through a view is read as it was written
REVISION = 3


@dataclass(frozen=True, kw_only=True)
class Int8Options:
    """What post-training and quantization-aware int8 can be told.

    Attributes:
        target: the engine whose kernels the graph is annotated for: ``inductor``, ``onnxruntime``, ``openvino``, or an
            int8 target of another package.
        observer: how an activation's range is chosen: ``minmax``, ``moving_average``, ``histogram`` (least squared
            error), ``percentile`` or ``entropy``.
        reduce_range: give weights 7 of their 8 bits, and both factors of products of activations, so that sums of two
            products fit 16 bits. None does so where this processor's kernels need it (`products_saturate`).
        protect: patterns of the paths of layers that stay in float (`layer_path`); products of attention are
            ``PATH.matmul``.

    Raises:
        UserError: no such target or observer, or a reduce_range that is not a truth value.
    """

    target: str = "inductor"
    observer: str = "histogram"
    reduce_range: bool | None = None
    protect: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_target(self.target)
        check_choice("observer", self.observer, OBSERVERS)
        check_choice("reduce_range", self.reduce_range, (None, True, False))

    def keywords(self) -> dict[str, Any]:
        """The options as keyword arguments of `prepare_qat`."""
        return {field.name: getattr(self, field.name) for field in fields(Int8Options)}


@dataclass(frozen=True, kw_only=True)
class StaticOptions(Int8Options):
    """What post-training int8 can be told besides: the accuracy tools. Each of them reads the batches once more.

    Attributes:
        target, observer, reduce_range, protect: see `Int8Options`.
        equalize: cross-layer equalization (Nagel et al., 2019), see `equalize_layers`.
        smooth: alpha of SmoothQuant for linear layers (Xiao et al., 2023), between 0 and 1, 0.5 for most models, see
            `smooth_inputs`; None: no smoothing.
        rounding: of weights: ``nearest`` or ``gptq`` (Frantar et al., 2023), see `optkit.quantize.accuracy.gptq`.
        correct_bias: take the mean error out of every bias (Nagel et al., 2019), see
            `optkit.quantize.accuracy.bias_correction`.

    Raises:
        UserError: an option that is not one of its values, or out of its range.
    """

    equalize: bool = False
    smooth: float | None = None
    rounding: str = "nearest"
    correct_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("equalize", self.equalize, (True, False))
        check_choice("correct_bias", self.correct_bias, (True, False))
        check_choice("rounding", self.rounding, ROUNDINGS)
        if self.smooth is not None:
            check_share("smooth", self.smooth)

    def keywords(self) -> dict[str, Any]:
        """The options as keyword arguments of `quantize_static` and `quantize_within`."""
        return {field.name: getattr(self, field.name) for field in fields(StaticOptions)}


def products_saturate() -> bool:
    """Whether this processor's int8 kernels add pairs of products in 16 bits (x86 without VNNI), which overflow."""
    isa = set(cpu()["isa"])
    return "avx2" in isa and not isa & {"avx512_vnni", "avx_vnni"}


def definite_range(reduce_range: bool | None) -> bool:
    """``reduce_range`` with None made definite: so that this processor's kernels do not overflow."""
    return products_saturate() if reduce_range is None else reduce_range
