"""What each engine's int8 kernels want of a graph, one file for each engine."""

from typing import TYPE_CHECKING

from optkit.core.lazy import lazy_names

if TYPE_CHECKING:
    from optkit.quantize.graph.targets.registry import INT8_TARGETS, find_target, saved_target
    from optkit.quantize.graph.targets.target import Int8Target
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = ["INT8_TARGETS", "Int8Target", "find_target", "saved_target"]
