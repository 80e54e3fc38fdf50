"""Loggers of other libraries that speak to their developers; named without importing these."""

from __future__ import annotations

NOISY = ("torch.utils._pytree", "torch.utils.cpp_extension")
"""Torch sets the level of their parent when it is imported, so each is silenced by name (torch 2.14)."""
