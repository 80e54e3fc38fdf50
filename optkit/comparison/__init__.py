"""Models compared on engines, without a recipe: timed in the same rounds, and judged by a function of the user's."""

from typing import TYPE_CHECKING

from optkit.core.lazy import lazy_names

if TYPE_CHECKING:
    from optkit.comparison.compare import compare
    from optkit.comparison.result import Comparison
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = ["Comparison", "compare"]
