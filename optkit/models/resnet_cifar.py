"""The residual networks of He et al. (2016), section 4.2: 6n+2 layers for small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optkit.core.errors import UserError


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a parameter-free shortcut (option A: subsample, then pad channels with zeros)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        extra = out_channels - in_channels
        self.pad = (extra // 2, extra - extra // 2)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride != 1 or self.pad != (0, 0):
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.pad))
        return F.relu(out + x)


class ResNetCIFAR(nn.Module):
    """A CIFAR residual network with ``depth`` = 6n + 2 layers.

    Args:
        depth: 20, 32, 44, 56 and 110 are the paper's; any 6n + 2 from 8 on works.
        num_classes: width of the last layer.
        in_channels: 3 for colour, 1 for grey images.
        width: channels of the first group (16 in the paper); the groups have 1, 2 and 4 times as many.

    Input ``(N, in_channels, H, W)``, output logits ``(N, num_classes)``.

    Raises:
        UserError: ``depth`` is not 6n + 2.
    """

    def __init__(self, depth: int = 20, num_classes: int = 10, in_channels: int = 3, width: int = 16):
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise UserError(f"{depth} is not 6n + 2", key="model.depth", value=depth, fix="use 20, 32, 44, 56 or 110")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._group(width, width, blocks, stride=1)
        self.layer2 = self._group(width, 2 * width, blocks, stride=2)
        self.layer3 = self._group(2 * width, 4 * width, blocks, stride=2)
        self.linear = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _group(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, out_channels, stride)
        return nn.Sequential(first, *(BasicBlock(out_channels, out_channels) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(out, 1), 1))
