"""Memory layouts of a module's tensors."""

from __future__ import annotations

import torch
from torch import nn


def channels_last_(module: nn.Module) -> nn.Module:
    """Lays out the tensors ``(N, C, H, W)`` of a module as ``(N, H, W, C)``, in place; others have no such layout."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return module
