"""optkit prunes, distills and quantizes PyTorch models, and measures on your engine what each step gains and costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optkit.engines.loading import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """`optkit.load`, imported when asked for: the command line must start without torch."""
    if name == "load":
        from optkit.engines.loading import load

        return load
    raise AttributeError(f"module 'optkit' has no attribute '{name}'")
