"""Weight-only quantization of linear layers: int8 or int4 weights, products in bfloat16, in kernels of torch's own."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from optkit.core.checks import check_pattern
from optkit.core.compat.torch_operators import private_aten
from optkit.core.errors import StageError, UserError
from optkit.core.loaders import Pick
from optkit.quantize.accuracy.gptq import gptq, second_moments
from optkit.quantize.batches import Batches
from optkit.quantize.graph.observers import scale_of
from optkit.quantize.options import BITS, GROUP_SIZES

KERNELS = ("aten._weight_int8pack_mm", "aten._weight_int4pack_mm_for_cpu")  # as `macs_by_operator` names them
INT8_PRODUCT, INT4_PRODUCT = (
    private_aten("_weight_int8pack_mm.default"),
    private_aten("_weight_int4pack_mm_for_cpu.default"),
)
PACK_INT4 = private_aten("_convert_weight_to_int4pack_for_cpu.default")


@dataclass(frozen=True)
class WeightOnly:
    """A model with quantized linear layers, and what rebuilds it.

    Attributes:
        module: of the class that went in, its linear layers replaced.
        layers: paths of those replaced.
        left: for each linear layer that stays in float, the reason.
    """

    module: nn.Module
    layers: tuple[str, ...]
    left: dict[str, str]


def quantize_weight_only(
    model: nn.Module,
    *,
    bits: int = 8,
    group_size: int = 64,
    protect: tuple[str, ...] = (),
    batches: Iterable[Any] | None = None,
    inputs: Pick | None = None,
) -> WeightOnly:
    """Quantize the weights of linear layers, and nothing else; the products take bfloat16 activations.

    With 8 bits a weight is an integer times a scale for each output (symmetric, torchao's ``Int8WeightOnlyConfig``),
    with 4 bits an integer times a scale plus an offset for each group of inputs (torchao's tinygemm scheme). Both run
    in kernels that read the integers, ``_weight_int8pack_mm`` and ``_weight_int4pack_mm_for_cpu``, and never make a
    float copy of a weight.

    Args:
        model: a float model; not touched.
        bits: 8 or 4.
        group_size: of 4-bit weights: how many inputs share a scale.
        protect: patterns of layer paths that stay in float.
        batches: what to round the weights by, as for `quantize_static`, with GPTQ (`optkit.quantize.accuracy.gptq`):
            what matters is then the error of a layer's output. None rounds each weight to the nearest.
        inputs: picks the model's inputs of a batch that holds more: ``inputs=lambda batch: batch[0]``.

    Raises:
        UserError: `bits` or `group_size` for which there is no kernel; a pattern that matches no linear layer.
        StageError: no layer of this model fits the kernels.
    """
    _check(bits, group_size)
    layers, left = _choose(model, bits, group_size, protect)
    if not layers:
        raise StageError(_nothing(model, left))
    module = copy.deepcopy(model)
    moments = {} if batches is None else second_moments(module, layers, Batches.of(batches, None, inputs))
    for path in layers:
        linear = module.get_submodule(path)
        assert isinstance(linear, nn.Linear)
        empty = _layer(linear, bits, group_size)
        empty.quantize_(linear, moments.get(path))
        module.set_submodule(path, empty)
    return WeightOnly(module.eval(), layers, left)


def replay_weight_only(model: nn.Module, layers: tuple[str, ...], bits: int, group_size: int) -> nn.Module:
    """The structure that `quantize_weight_only` gave, on a fresh model; the weights are loaded over it."""
    for path in layers:
        model.set_submodule(path, _layer(model.get_submodule(path), bits, group_size))
    return model


def check_weight_only(model: nn.Module, bits: int, group_size: int, protect: tuple[str, ...] = ()) -> None:
    """Raises UserError unless a layer of the model fits the kernels and every pattern matches one."""
    layers, left = _choose(model, bits, group_size, protect)
    if not layers:
        raise UserError(_nothing(model, left), key="bits", value=bits)


class WeightOnlyLinear(nn.Module):
    """A linear layer with quantized weights ``(out, in)``: bfloat16 products, answers of its input's type."""

    lowest: int  # of the integers

    def __init__(self, in_features: int, out_features: int, bias: bool):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.bias = nn.Parameter(torch.zeros(out_features), requires_grad=False) if bias else None

    def product(self, x: Tensor) -> Tensor:
        """``x`` ``(rows, in)`` times the weights, both bfloat16."""
        raise NotImplementedError

    def quantize_(self, linear: nn.Linear, moment: Tensor | None = None) -> None:
        """Takes over a float layer's weights and bias.

        Args:
            linear: the layer.
            moment: second moments of its inputs ``(1, in, in)``, to round by; None for each weight to the nearest.
        """
        if linear.bias is not None and self.bias is not None:
            self.bias.data = linear.bias.detach().float().clone()
        weight = linear.weight.detach().float()
        self.set_grid(weight)
        if moment is not None:
            weight = gptq(weight[None], moment, self._nearest)[0]
        self.set_weight(weight)

    def set_grid(self, weight: Tensor) -> None:
        """Chooses the scales by the weights ``(out, in)``."""
        raise NotImplementedError

    def set_weight(self, weight: Tensor) -> None:
        """Rounds the weights ``(out, in)`` to the grid."""
        raise NotImplementedError

    def grid(self, column: int) -> tuple[Tensor, Tensor]:
        """Scale and offset of an input's weights, ``(out, 1)`` each."""
        raise NotImplementedError

    def _nearest(self, value: Tensor, column: int) -> Tensor:
        scale, offset = self.grid(column)
        return ((value - offset) / scale).round().clamp(self.lowest, -self.lowest - 1) * scale + offset

    def float_weight(self) -> Tensor:
        """The weights in float32 ``(out, in)``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``."""
        rows = x.reshape(-1, self.in_features).to(torch.bfloat16)
        out = self.product(rows).to(x.dtype).reshape(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Int8Linear(WeightOnlyLinear):
    """int8 weights with a scale for each output."""

    lowest = -128

    def __init__(self, in_features: int, out_features: int, bias: bool):
        super().__init__(in_features, out_features, bias)
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(out_features, dtype=torch.bfloat16))

    def product(self, x: Tensor) -> Tensor:
        return INT8_PRODUCT(x, self.weight, self.scale)

    def set_grid(self, weight: Tensor) -> None:
        self.scale = scale_of(weight.float().abs().amax(1), 127).to(torch.bfloat16)

    def set_weight(self, weight: Tensor) -> None:
        # the integers are those for the scale that the kernel reads, which was rounded first
        self.weight = (weight / self.scale.float()[:, None]).round().clamp(-128, 127).to(torch.int8)

    def grid(self, column: int) -> tuple[Tensor, Tensor]:
        scale = self.scale.double()[:, None]
        return scale, torch.zeros_like(scale)

    def float_weight(self) -> Tensor:
        return self.weight.float() * self.scale.float()[:, None]


class Int4Linear(WeightOnlyLinear):
    """4-bit weights, two to a byte, with a scale and an offset for each group of inputs.

    The kernel wants them in an order that depends on the processor: this order is made when weights are taken over or
    loaded, and not saved.
    """

    lowest = -8

    def __init__(self, in_features: int, out_features: int, bias: bool, group_size: int):
        super().__init__(in_features, out_features, bias)
        self.group_size = group_size
        groups = (in_features // group_size, out_features, 2)
        self.register_buffer("weight", torch.zeros(out_features, in_features // 2, dtype=torch.uint8))
        self.register_buffer("scale_and_offset", torch.zeros(groups, dtype=torch.bfloat16))
        self.register_buffer("packed", self._pack(), persistent=False)
        self.register_load_state_dict_post_hook(_repack)

    def product(self, x: Tensor) -> Tensor:
        return INT4_PRODUCT(x, self.packed, self.group_size, self.scale_and_offset)

    def set_grid(self, weight: Tensor) -> None:
        groups = weight.unflatten(1, (-1, self.group_size))
        low, high = groups.amin(2), groups.amax(2)
        # where all weights of a group are equal, the offset alone gives them, as exactly as the scale is small
        spread = torch.where(high > low, high - low, low.abs() / 16)
        scale = scale_of(spread, 15).to(torch.bfloat16)
        offset = (low + 8 * scale.float()).to(torch.bfloat16)
        self.scale_and_offset = torch.stack([scale.T, offset.T], -1).contiguous()

    def set_weight(self, weight: Tensor) -> None:
        scale, offset = self._spread()
        digits = ((weight - offset) / scale + 8).round().clamp(0, 15).to(torch.uint8)
        self.weight = digits[:, ::2] | (digits[:, 1::2] << 4)
        self.packed = self._pack()

    def grid(self, column: int) -> tuple[Tensor, Tensor]:
        scale, offset = self.scale_and_offset[column // self.group_size].double().unbind(-1)
        return scale[:, None], offset[:, None]

    def float_weight(self) -> Tensor:
        scale, offset = self._spread()
        return (self._digits().float() - 8) * scale + offset

    def _spread(self) -> tuple[Tensor, ...]:
        """Scale and offset of every weight ``(out, in)``."""
        return tuple(x.float().T.repeat_interleave(self.group_size, 1) for x in self.scale_and_offset.unbind(-1))

    def _digits(self) -> Tensor:
        """Every weight's number from 0 to 15 ``(out, in)``."""
        return torch.stack([self.weight & 15, self.weight >> 4], -1).flatten(1)

    def _pack(self) -> Tensor:
        return PACK_INT4(self._digits().int(), 1)


def _repack(layer: nn.Module, _: Any) -> None:
    """Puts weights that were loaded into the kernel's order."""
    assert isinstance(layer, Int4Linear)
    layer.packed = layer._pack()


def _layer(linear: nn.Module, bits: int, group_size: int) -> WeightOnlyLinear:
    """A layer of the same shape, its weights still to come."""
    assert isinstance(linear, nn.Linear)
    shape = (linear.in_features, linear.out_features, linear.bias is not None)
    return Int8Linear(*shape) if bits == 8 else Int4Linear(*shape, group_size)


def _check(bits: int, group_size: int) -> None:
    if bits not in BITS:
        raise UserError(f"no kernel for weights of {bits} bits", key="bits", value=bits, fix="8 or 4")
    if bits == 4 and group_size not in GROUP_SIZES:
        fix = f"one of {', '.join(map(str, GROUP_SIZES))}"
        raise UserError(f"no kernel for groups of {group_size}", key="group_size", value=group_size, fix=fix)


def _choose(
    model: nn.Module, bits: int, group_size: int, protect: tuple[str, ...]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Paths of the layers that fit, and why the others do not."""
    linears = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    protected = {path for pattern in protect for path in check_pattern("protect", pattern, linears, "linear layer")}
    reasons = {
        path: "protected" if path in protected else _misfit(module, bits, group_size)
        for path, module in linears.items()
    }
    left = {path: reason for path, reason in reasons.items() if reason}
    return tuple(path for path in reasons if path not in left), left


def _misfit(linear: nn.Linear, bits: int, group_size: int) -> str | None:
    """Why a layer does not fit the kernels; None if it does."""
    if type(linear).forward is not nn.Linear.forward or type(linear).__name__ != "Linear":
        return f"a {type(linear).__name__}, whose weights others read"
    inputs, outputs = linear.in_features, linear.out_features
    if outputs <= 8:  # inductor writes so small a tensor of scales into its code, where the kernel does not find it
        return f"its {outputs} outputs are too few"
    if bits == 8:
        return f"its {inputs} inputs are no multiple of 16" if inputs % 16 else None
    if inputs % group_size:
        return f"its {inputs} inputs are no multiple of the group size {group_size}"
    return f"its {outputs} outputs are no multiple of 16" if outputs % 16 else None


def _nothing(model: nn.Module, left: dict[str, str]) -> str:
    reason = "; ".join(f"{path}: {why}" for path, why in list(left.items())[:3]) or "it has no linear layer"
    return f"no layer of this {type(model).__name__} fits the weight-only kernels: {reason}"
