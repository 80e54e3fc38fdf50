"""The layers of surgery ``quantize.weight_only/1``, for variants that were saved with them."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from optkit.quantize.weights.layers import INT4_PRODUCT, INT8_PRODUCT, PACK_INT4


class FirstLayout:
    """Replays ``quantize.weight_only/1``."""

    surgery: ClassVar[str] = "quantize.weight_only/1"

    @staticmethod
    def replay(module: nn.Module, surgery: dict[str, Any], example: tuple[Tensor, ...]) -> nn.Module:
        """Puts empty layers in the place of float ones; the weights are loaded over them."""
        for path in surgery["layers"]:
            linear = module.get_submodule(path)
            assert isinstance(linear, nn.Linear)
            shape = (linear.in_features, linear.out_features, linear.bias is not None)
            layer = Int8Linear(*shape) if surgery["bits"] == 8 else Int4Linear(*shape, surgery["group_size"])
            module.set_submodule(path, layer)
        return module


class FirstLinear(nn.Module):
    """A linear layer with quantized weights ``(out, in)``: bfloat16 products, answers of its input's type."""

    def __init__(self, in_features: int, out_features: int, bias: bool):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.bias = nn.Parameter(torch.zeros(out_features), requires_grad=False) if bias else None

    def product(self, x: Tensor) -> Tensor:
        """``x`` ``(rows, in)`` times the weights, both bfloat16."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``."""
        rows = x.reshape(-1, self.in_features).to(torch.bfloat16)
        out = self.product(rows).to(x.dtype).reshape(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias


class Int8Linear(FirstLinear):
    """int8 weights with a scale for each output."""

    bits, group_size = 8, None
    weight: Tensor
    scale: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool):
        super().__init__(in_features, out_features, bias)
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(out_features, dtype=torch.bfloat16))

    def product(self, x: Tensor) -> Tensor:
        return INT8_PRODUCT(x, self.weight, self.scale)

    def integers(self) -> Tensor:
        """``(out, in)`` int8."""
        return self.weight

    def scales(self) -> Tensor:
        """``(out, 1)`` float32."""
        return self.scale.float()[:, None]

    def zero_points(self) -> None:
        """All are 0."""

    def float_weight(self) -> Tensor:
        """``(out, in)`` float32."""
        return self.weight.float() * self.scale.float()[:, None]


class Int4Linear(FirstLinear):
    """4-bit weights, two to a byte, with a scale and a float offset for each group of inputs.

    An offset is no whole number of scales, so this layer does not satisfy `optkit.core.packed_weights`.
    """

    weight: Tensor

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

    def _pack(self) -> Tensor:
        digits = torch.stack([self.weight & 15, self.weight >> 4], -1).flatten(1)
        return PACK_INT4(digits.int(), 1)


def _repack(layer: nn.Module, _: Any) -> None:
    """Puts weights that were loaded into the kernel's order."""
    assert isinstance(layer, Int4Linear)
    layer.packed = layer._pack()
