"""Grids of weights: integers of few bits, with a scale, and a zero point if wanted, for each group of inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from optkit.quantize.graph.observers import scale_of
from optkit.quantize.weights.scheme import Scheme

AT_ONCE = 2**17  # weights that are fitted at once
SHRINKING = torch.linspace(1.0, 0.5, 21)  # of a group's range, where the grid is fitted to data


@dataclass(frozen=True)
class Grid:
    """Scales and zero points of a layer's weights.

    Attributes:
        scheme: what they are for.
        scale: ``(out, groups)`` float32, of values that bfloat16 holds: kernels read them in it.
        zero_point: ``(out, groups)`` float32, of whole numbers.
    """

    scheme: Scheme
    scale: Tensor
    zero_point: Tensor

    @classmethod
    def minmax(cls, weight: Tensor, scheme: Scheme) -> Grid:
        """The grid that reaches over all weights ``(out, in)`` of a group."""
        groups = weight.unflatten(1, (scheme.groups(weight.shape[1]), -1))
        return cls.over(groups.amin(2), groups.amax(2), scheme)

    @classmethod
    def over(cls, low: Tensor, high: Tensor, scheme: Scheme) -> Grid:
        """The grid of ranges; 0 is always on it.

        Args:
            low, high: ``(out, groups)``.
            scheme: of the integers.
        """
        low, high = low.clamp(max=0), high.clamp(min=0)
        if scheme.symmetric:
            # both ends are used: the lowest integer is one further from 0 than the highest
            reach = torch.maximum(high / scheme.highest, low / scheme.lowest)
            scale = _as_stored(scale_of(reach, 1))
            return cls(scheme, scale, torch.zeros_like(scale))
        scale = _as_stored(scale_of(high - low, scheme.highest - scheme.lowest))
        return cls(scheme, scale, (scheme.lowest - low / scale).round().clamp(scheme.lowest, scheme.highest))

    @classmethod
    def fitted(cls, weight: Tensor, scheme: Scheme, moment: Tensor) -> Grid:
        """The grid of each group whose rounding errors change a layer's output least.

        It is the clipping of AWQ (Lin et al., 2024): ranges are shrunk step by step. Between groups, and where an
        output has one group, between inputs, errors are taken as independent.

        Args:
            weight: ``(out, in)``.
            scheme: of the integers.
            moment: second moments of the inputs ``(in, in)``.
        """
        rows = max(1, AT_ONCE // weight.shape[1])  # what the processor's cache holds
        parts = [cls._fitted(part, scheme, moment) for part in weight.split(rows)]
        return cls(scheme, torch.cat([part.scale for part in parts]), torch.cat([part.zero_point for part in parts]))

    @classmethod
    def _fitted(cls, weight: Tensor, scheme: Scheme, moment: Tensor) -> Grid:
        count = scheme.groups(weight.shape[1])
        if count == 1:
            within = moment.diagonal()[None, :, None]  # (1, in, 1)
        else:
            size = weight.shape[1] // count
            within = torch.stack([moment[n : n + size, n : n + size] for n in range(0, len(moment), size)])
        groups = weight.unflatten(1, (count, -1))
        low, high = groups.amin(2), groups.amax(2)
        best, least = cls.over(low, high, scheme), torch.full_like(low, torch.inf)
        for share in SHRINKING.tolist():
            grid = cls.over(low * share, high * share, scheme)
            error = (grid.nearest(weight) - weight).unflatten(1, (count, -1)).transpose(0, 1)  # (groups, out, size)
            weighed = error * within.transpose(1, 2) if count == 1 else error @ within
            loss = (weighed * error).sum(2).T
            better = loss < least
            least = torch.where(better, loss, least)
            scale = torch.where(better, grid.scale, best.scale)
            best = cls(scheme, scale, torch.where(better, grid.zero_point, best.zero_point))
        return best

    def integers(self, weight: Tensor) -> Tensor:
        """The nearest integers of weights ``(out, in)``, as float32."""
        groups = weight.unflatten(1, (self.scale.shape[1], -1)) / self.scale[..., None]
        found = groups.add_(self.zero_point[..., None]).round_()
        return found.clamp_(self.scheme.lowest, self.scheme.highest).flatten(1)

    def values(self, integers: Tensor) -> Tensor:
        """What integers ``(out, in)`` stand for, float32."""
        groups = integers.float().unflatten(1, (self.scale.shape[1], -1))
        return (groups - self.zero_point[..., None]).mul_(self.scale[..., None]).flatten(1)

    def nearest(self, weight: Tensor) -> Tensor:
        """The points of the grid next to weights ``(out, in)``."""
        return self.values(self.integers(weight))

    def rows(self, start: int, stop: int) -> Grid:
        """The grid of some of the outputs."""
        return Grid(self.scheme, self.scale[start:stop], self.zero_point[start:stop])


def _as_stored(scale: Tensor) -> Tensor:
    return scale.to(torch.bfloat16).float()
