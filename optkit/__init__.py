"""optkit prunes, distills and quantizes PyTorch models, and measures on your engine what each step gains and costs."""

from typing import TYPE_CHECKING

from optkit.core.lazy import lazy_names

if TYPE_CHECKING:
    from optkit.deploy.exporting import export
    from optkit.deploy.hub import push
    from optkit.engines.loading import load
else:
    __getattr__, __dir__ = lazy_names(__name__)

__version__ = "0.1.0"
__all__ = ["__version__", "export", "load", "push"]
