"""A small network of dense labels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class UNet(nn.Module):
    """A small U-Net (Ronneberger et al., 2015), with batch norm and padded convolutions.

    Each width is a level: two 3x3 convolutions, and a halving pool before the next. The way back doubles the size
    (nearest) and joins the level's features.

    Input ``(N, in_channels, H, W)`` of any size that survives the pools, output logits ``(N, num_classes, H, W)``.
    """

    def __init__(self, num_classes: int = 2, in_channels: int = 3, widths: Sequence[int] = (16, 32, 64)):
        super().__init__()
        sizes = [in_channels, *widths]
        self.down = nn.ModuleList(_two_convolutions(a, b) for a, b in pairwise(sizes))
        self.up = nn.ModuleList(
            _two_convolutions(low + skip, skip) for low, skip in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.classifier = nn.Conv2d(widths[0], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for level, convolutions in enumerate(self.down):
            x = convolutions(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for convolutions, skip in zip(self.up, skips[-2::-1], strict=True):
            x = convolutions(torch.cat([F.interpolate(x, size=skip.shape[-2:], mode="nearest"), skip], 1))
        return self.classifier(x)


def _two_convolutions(in_channels: int, out_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers += [
            nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)
