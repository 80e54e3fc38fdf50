"""The contract of layers whose weights are small integers, for the engines that have kernels for them."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor, nn

WEIGHT_ONLY = "weight_only"  # a trait of variants with such layers
# a trait of variants whose weights torch has no kernel for: there a layer multiplies by dequantized weights
SIMULATED_IN_TORCH = "weight_only:simulated_in_torch"


@runtime_checkable
class PackedWeights(Protocol):
    """A linear layer or an embedding with weights ``(out, in)`` of few bits: ``(integer - zero point) * scale``.

    Attributes:
        bits: of an integer; it is between ``-2 ** (bits - 1)`` and ``2 ** (bits - 1) - 1``.
        group_size: how many inputs share a scale; None where all inputs of an output do.
    """

    bits: int
    group_size: int | None

    def integers(self) -> Tensor:
        """``(out, in)`` int8."""
        ...

    def scales(self) -> Tensor:
        """``(out, groups)`` float32."""
        ...

    def zero_points(self) -> Tensor | None:
        """``(out, groups)`` int8; None where all are 0."""
        ...

    def float_weight(self) -> Tensor:
        """What the integers stand for, ``(out, in)`` float32."""
        ...


def packed_traits(module: nn.Module) -> frozenset[str]:
    """The traits of a model with such layers; none where it has no such layer.

    A layer says by ``is_simulated = True`` that it multiplies by what its integers stand for.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, PackedWeights)]
    simulated = any(getattr(layer, "is_simulated", False) for layer in layers)
    return frozenset(([WEIGHT_ONLY] if layers else []) + ([SIMULATED_IN_TORCH] if simulated else []))
