"""Attention of torch, one operator at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def spelled_out() -> Iterator[None]:
    """Inside, torch's attention and encoder layers do not run as one operator, which would say nothing of its work."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
