"""Fake quantization: rounds to an int8 grid and back; gradients pass as if it did not (Bengio et al., 2013)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from optkit.core.compat.torch_operators import private_aten
from optkit.quantize.graph.observers import DECAY, ActivationObserver, scale_of

# fake quantization with a gradient of the scale
BY_TENSOR = private_aten("_fake_quantize_learnable_per_tensor_affine.default")
BY_CHANNEL = private_aten("_fake_quantize_learnable_per_channel_affine.default")


class MovingRange(nn.Module):
    """Fake-quantizes an activation; its range follows the batches' smallest and largest value (Jacob et al., 2018).

    Args:
        observer: calibrated; where the range begins, and the integers.
    """

    low: Tensor
    high: Tensor

    def __init__(self, observer: ActivationObserver):
        super().__init__()
        low, high = observer.range()
        self.register_buffer("low", torch.tensor(low))
        self.register_buffer("high", torch.tensor(high))
        self.grid = observer.grid
        self.frozen = False

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        if self.training and not self.frozen and x.numel():
            low, high = torch.aminmax(x.detach())
            self.low.lerp_(low, 1 - DECAY)
            self.high.lerp_(high, 1 - DECAY)
        scale, zero_point = self.grid.affine(self.low, self.high)
        return torch.fake_quantize_per_tensor_affine(
            x, scale, zero_point.int(), self.grid.quant_min, self.grid.quant_max
        )

    def range(self) -> tuple[float, float]:
        """From where to where."""
        return float(self.low), float(self.high)

    def freeze(self) -> None:
        """Keeps the range as it is."""
        self.frozen = True


class LearnedRange(nn.Module):
    """Fake-quantizes an activation; its scale is trained (LSQ, see `LearnedScale`), its zero point stays.

    Args:
        observer: calibrated; where the scale begins, the zero point and the integers.
    """

    zero_point: Tensor

    def __init__(self, observer: ActivationObserver):
        super().__init__()
        scale, zero_point = observer.calculate_qparams()
        self.integers = (observer.quant_min, observer.quant_max)
        self.scale = LearnedScale(scale)
        self.register_buffer("zero_point", zero_point)

    def forward(self, x: Tensor) -> Tensor:
        zero_point = self.zero_point.float()
        factor = (max(x.numel(), 1) * self.integers[1]) ** -0.5
        return BY_TENSOR(x.float(), self.scale(), zero_point, *self.integers, factor)

    def range(self) -> tuple[float, float]:
        """From where to where."""
        scale, zero_point = self.scale().item(), int(self.zero_point)
        low, high = ((n - zero_point) * scale for n in self.integers)
        return low, high


class MaxScales(nn.Module):
    """Fake-quantizes a weight ``(C, ...)``, each output channel to a grid that just holds its largest value.

    Args:
        highest: integer; the grid is the same on both sides, so a negative batch-norm weight may mirror it.
    """

    def __init__(self, highest: int):
        super().__init__()
        self.highest = highest

    def forward(self, weight: Tensor) -> Tensor:
        weight = weight.float()
        scales, zeros = self.scales(weight), torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
        return torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -self.highest, self.highest)

    def scales(self, weight: Tensor) -> Tensor:
        """One a channel ``(C,)``."""
        return scale_of(largest(weight), self.highest)


class LearnedScales(nn.Module):
    """Fake-quantizes a weight ``(C, ...)`` with a scale for each output channel that is trained (LSQ).

    Args:
        weight: its largest values are where the scales begin.
        highest: as for `MaxScales`.
    """

    def __init__(self, weight: Tensor, highest: int):
        super().__init__()
        self.highest = highest
        found = largest(weight)
        # a channel of zeros says nothing of the size its values may take
        self.scale = LearnedScale(scale_of(torch.where(found > 0, found, found.mean()), highest))

    def forward(self, weight: Tensor) -> Tensor:
        zeros = torch.zeros(len(weight), device=weight.device)
        factor = (weight[0].numel() * self.highest) ** -0.5
        return BY_CHANNEL(weight.float(), self.scale(), zeros, 0, -self.highest, self.highest, factor)

    def scales(self, weight: Tensor) -> Tensor:
        """One a channel ``(C,)``."""
        return self.scale()


class LearnedScale(nn.Module):
    """Scales that are trained: learned step size quantization (LSQ; Esser et al., 2020).

    The paper divides the gradient by the root of N * Q: how many values share the scale, and the largest integer. What
    is trained here is a scale's ratio to its first value, with the gradient over the square of that value: SGD then
    takes the paper's steps, and Adam, whose steps have one size whatever the gradient's, changes scales by a share of
    themselves.

    Args:
        first: where the scales begin ``(C,)``.
    """

    first: Tensor

    def __init__(self, first: Tensor):
        super().__init__()
        self.register_buffer("first", first.detach().clone())
        self.ratio = nn.Parameter(torch.ones_like(first))

    def forward(self) -> Tensor:
        return _Scaled.apply(self.ratio.abs().clamp(min=1e-3), self.first)


class _Scaled(torch.autograd.Function):
    """A ratio times what it is a ratio to; the gradient is divided by it, and not multiplied."""

    @staticmethod
    def forward(ctx: Any, ratio: Tensor, first: Tensor) -> Tensor:
        ctx.save_for_backward(first)
        return ratio * first

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient / ctx.saved_tensors[0], None


def largest(weight: Tensor) -> Tensor:
    """The largest magnitude of each output channel ``(C,)``."""
    return weight.detach().float().abs().flatten(1).amax(1)
