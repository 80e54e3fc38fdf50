"""Private names of other libraries: what optkit needs of them and finds nowhere else."""

from __future__ import annotations

from torch import nn


def compiled_from(module: nn.Module) -> nn.Module | None:
    """The module that ``torch.compile`` was given to make this one; None for any other module."""
    return module._orig_mod if type(module).__name__ == "OptimizedModule" else None  # type: ignore[return-value]
