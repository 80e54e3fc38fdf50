"""optkit prunes, distills and quantizes PyTorch models, and measures on your engine what each step gains and costs."""

from typing import TYPE_CHECKING

from optkit.core.lazy import lazy_names

if TYPE_CHECKING:
    from optkit.comparison.compare import compare
    from optkit.core.version import __version__
    from optkit.costs.estimate import cost
    from optkit.deploy.exporting import export
    from optkit.deploy.hub import push
    from optkit.distill.from_loader import distill_from
    from optkit.engines.compiling import compile  # noqa: A004
    from optkit.engines.loading import load
    from optkit.prune.depth import prune_depth
    from optkit.prune.structured import prune_structured
    from optkit.quantize.dynamic import quantize_dynamic
    from optkit.quantize.qat.graph import convert_qat, prepare_qat
    from optkit.quantize.static import quantize_static
    from optkit.quantize.weight_only import quantize_weight_only
    from optkit.reproduction import reproduce
    from optkit.runs import run
    from optkit.searches.search import search
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "__version__",
    "compare",
    "compile",
    "convert_qat",
    "cost",
    "distill_from",
    "export",
    "load",
    "prepare_qat",
    "prune_depth",
    "prune_structured",
    "push",
    "quantize_dynamic",
    "quantize_static",
    "quantize_weight_only",
    "reproduce",
    "run",
    "search",
]
