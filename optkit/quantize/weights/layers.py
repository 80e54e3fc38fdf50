"""Linear layers and embeddings with weights of few bits (`optkit.core.packed_weights`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optkit.core.compat.torch_operators import private_aten
from optkit.quantize.weights.grid import Grid
from optkit.quantize.weights.scheme import Scheme

KERNELS = ("aten._weight_int8pack_mm", "aten._weight_int4pack_mm_for_cpu")  # as `macs_by_operator` names them
INT8_PRODUCT, INT4_PRODUCT = (
    private_aten("_weight_int8pack_mm.default"),
    private_aten("_weight_int4pack_mm_for_cpu.default"),
)
PACK_INT4 = private_aten("_convert_weight_to_int4pack_for_cpu.default")


class Packed(nn.Module):
    """Weights ``(out, in)`` as integers: a byte each, or half a byte for 4 and fewer bits."""

    is_simulated = False
    weight: Tensor
    scale: Tensor
    zero_point: Tensor | None

    def __init__(self, out_features: int, in_features: int, scheme: Scheme):
        super().__init__()
        self.in_features, self.out_features, self.scheme = in_features, out_features, scheme
        self.bits, self.group_size = scheme.bits, scheme.group_size
        shape = (out_features, scheme.groups(in_features))
        if scheme.bits == 8:
            self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8))
        else:
            self.register_buffer("weight", torch.zeros(out_features, (in_features + 1) // 2, dtype=torch.uint8))
        self.register_buffer("scale", torch.ones(shape, dtype=torch.bfloat16))
        self.register_buffer("zero_point", None if scheme.symmetric else torch.zeros(shape, dtype=torch.int8))

    def take(self, weight: Tensor, grid: Grid) -> None:
        """Takes over weights ``(out, in)``, each rounded to the nearest point of a grid."""
        integers = grid.integers(weight)
        self.scale = grid.scale.to(torch.bfloat16)
        self.zero_point = None if self.scheme.symmetric else grid.zero_point.to(torch.int8)
        self.weight = integers.to(torch.int8) if self.bits == 8 else _halves((integers + 8).to(torch.uint8))

    def integers(self) -> Tensor:
        """``(out, in)`` int8."""
        return self._integers(self.weight)

    def scales(self) -> Tensor:
        """``(out, groups)`` float32."""
        return self.scale.float()

    def zero_points(self) -> Tensor | None:
        """``(out, groups)`` int8; None where all are 0."""
        return self.zero_point

    def float_weight(self) -> Tensor:
        """``(out, in)`` float32."""
        return self._values(self.weight, self.scale, self.zero_point)

    def _integers(self, rows: Tensor) -> Tensor:
        if self.bits == 8:
            return rows
        both = torch.stack([rows & 15, rows >> 4], -1).flatten(-2)[..., : self.in_features]
        return both.to(torch.int8) - 8

    def _values(self, rows: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
        """What some outputs' integers stand for."""
        integers = self._integers(rows).float().unflatten(-1, (scale.shape[-1], -1))
        shifted = integers if zero_point is None else integers - zero_point.float()[..., None]
        return (shifted * scale.float()[..., None]).flatten(-2)


class PackedLinear(Packed):
    """A linear layer with weights of few bits.

    Where torch has a kernel, products are of bfloat16 and the integers. Elsewhere the layer multiplies by the float32
    weights that the integers stand for: engines with kernels of their own read the integers instead.

    Attributes:
        kernel: ``int8``, ``int4``, or None where torch has none.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, scheme: Scheme):
        super().__init__(out_features, in_features, scheme)
        self.bias = nn.Parameter(torch.zeros(out_features), requires_grad=False) if bias else None
        self.kernel = None if misfit(in_features, out_features, scheme) else "int8" if scheme.bits == 8 else "int4"
        self.is_simulated = self.kernel is None
        # what the kernel reads depends on the processor: made when weights are taken over or loaded, and not saved
        self.register_buffer("packed", None, persistent=False)
        self.register_buffer("scale_and_offset", None, persistent=False)
        self.register_load_state_dict_post_hook(_arrange)
        self.arrange()

    def take(self, weight: Tensor, grid: Grid) -> None:
        super().take(weight, grid)
        self.arrange()

    def arrange(self) -> None:
        """Puts 4-bit weights into the order of torch's kernel."""
        if self.kernel == "int4":
            self.packed = PACK_INT4(self.integers().int() + 8, 1)
            offset = torch.zeros_like(self.scale) if self.zero_point is None else -self.zero_point * self.scale
            self.scale_and_offset = torch.stack([self.scale.T, offset.T], -1).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.kernel is None:
            return F.linear(x, self.float_weight().to(x.dtype), bias)
        rows = x.reshape(-1, self.in_features).to(torch.bfloat16)
        if self.kernel == "int8":
            out = INT8_PRODUCT(rows, self.weight, self.scale[:, 0])
        else:
            out = INT4_PRODUCT(rows, self.packed, self.group_size, self.scale_and_offset)
        out = out.to(x.dtype).reshape(*x.shape[:-1], self.out_features)
        return out if bias is None else out + bias

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self.scheme}"


class PackedEmbedding(Packed):
    """An embedding with rows of few bits; the rows that are looked up become floats of ``dtype``."""

    def __init__(self, num_embeddings: int, embedding_dim: int, scheme: Scheme, dtype: torch.dtype = torch.float32):
        super().__init__(num_embeddings, embedding_dim, scheme)
        self.dtype = dtype
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim

    def forward(self, ids: Tensor) -> Tensor:
        """``(...)`` to ``(..., embedding_dim)``."""
        zero_point = None if self.zero_point is None else self.zero_point[ids]
        return self._values(self.weight[ids], self.scale[ids], zero_point).to(self.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.scheme}"


def tie(head: PackedLinear, embedding: PackedEmbedding) -> None:
    """Makes a head read an embedding's integers."""
    head.weight, head.scale, head.zero_point = embedding.weight, embedding.scale, embedding.zero_point
    head.arrange()


def misfit(inputs: int, outputs: int, scheme: Scheme) -> str | None:
    """Why torch's kernels do not take a layer; None if they do."""
    if not scheme.has_kernel:
        return "torch has no kernel for its scheme"
    if outputs <= 8:  # inductor writes so small a tensor of scales into its code, where the kernel does not find it
        return f"its {outputs} outputs are too few"
    if scheme.bits == 8:
        return f"its {inputs} inputs are no multiple of 16" if inputs % 16 else None
    return f"its {outputs} outputs are no multiple of 16" if outputs % 16 else None


def _halves(values: Tensor) -> Tensor:
    """Numbers from 0 to 15 ``(out, in)``, two to a byte."""
    if values.shape[1] % 2:
        values = F.pad(values, (0, 1))
    return values[:, ::2] | (values[:, 1::2] << 4)


def _arrange(layer: nn.Module, _: Any) -> None:
    assert isinstance(layer, PackedLinear)
    layer.arrange()
