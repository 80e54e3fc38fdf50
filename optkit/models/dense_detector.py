"""A small detector without anchors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PRIOR = 0.01  # the share of places that a new network takes for an object (Lin et al., 2017)


class DenseDetector(nn.Module):
    """A box and class scores at each place of one grid, without anchors (FCOS, Tian et al., 2019, at a single scale).

    Each width is a 3x3 convolution, batch norm and ReLU, and a halving pool; ``head`` more such layers, without pools,
    follow at the last width. A place gives its distances to the four sides of a box.

    Input ``(N, in_channels, H, W)``, H and W multiples of ``2 ** len(widths)``, which is the step of the grid. Output
    ``boxes`` ``(N, places, 4)``: x1, y1, x2, y2 in pixels of the input, and ``scores`` ``(N, places, num_classes)``:
    logits, each class for itself. The places are in rows.

    Several places find one object: `optkit.tasks.detections` leaves out all but the best.
    """

    def __init__(self, num_classes: int = 1, in_channels: int = 3, widths: Sequence[int] = (16, 32, 64), head: int = 2):
        super().__init__()
        layers: list[nn.Module] = []
        for width in widths:
            layers += [*_convolution(in_channels, width), nn.MaxPool2d(2)]
            in_channels = width
        for _ in range(head):
            layers += _convolution(in_channels, in_channels)
        self.features = nn.Sequential(*layers)
        self.scores = nn.Conv2d(in_channels, num_classes, 3, padding=1)
        self.distances = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.step = 2 ** len(widths)
        nn.init.normal_(self.scores.weight, std=0.01)
        nn.init.constant_(self.scores.get_parameter("bias"), -math.log((1 - PRIOR) / PRIOR))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.features(x)
        height, width = features.shape[-2:]
        across = (torch.arange(width, device=x.device) + 0.5) * self.step
        down = (torch.arange(height, device=x.device) + 0.5) * self.step
        centers = torch.stack([across.repeat(height), down.repeat_interleave(width)], 1)
        left_top, right_bottom = (F.softplus(_in_rows(self.distances(features))) * self.step).split(2, 2)
        boxes = torch.cat([centers - left_top, centers + right_bottom], 2)
        return {"boxes": boxes, "scores": _in_rows(self.scores(features))}


def _in_rows(maps: Tensor) -> Tensor:
    """``(N, C, H, W)`` to ``(N, H * W, C)``."""
    return maps.flatten(2).transpose(1, 2)


def _convolution(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]
