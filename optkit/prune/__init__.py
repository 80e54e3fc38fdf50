"""Pruning: masks and structured cuts as pure functions, and their stages."""

from typing import TYPE_CHECKING

from optkit.core.lazy import lazy_names

# one is named as its module, which would take its place here if it were imported later
from optkit.prune.sensitivity import Curve, Sensitivity, sensitivity

if TYPE_CHECKING:
    from optkit.prune.cut.analysis import kept_whole
    from optkit.prune.cut.plan import CutPlan
    from optkit.prune.depth import DepthPlan, Shortened, prune_depth
    from optkit.prune.gradual import GradualMasks, cubic_sparsity
    from optkit.prune.masks import apply_masks_, magnitude_masks, random_masks
    from optkit.prune.options import CutOptions
    from optkit.prune.pattern import Pattern
    from optkit.prune.sequential_masks import sequential_masks_
    from optkit.prune.stages.depth import DepthPruning
    from optkit.prune.stages.gradual import GradualPruning
    from optkit.prune.stages.magnitude import MagnitudePruning
    from optkit.prune.stages.structured import StructuredPruning
    from optkit.prune.structured import Pruned, prune_structured
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "Curve",
    "CutOptions",
    "CutPlan",
    "DepthPlan",
    "DepthPruning",
    "GradualMasks",
    "GradualPruning",
    "MagnitudePruning",
    "Pattern",
    "Pruned",
    "Sensitivity",
    "Shortened",
    "StructuredPruning",
    "apply_masks_",
    "cubic_sparsity",
    "kept_whole",
    "magnitude_masks",
    "prune_depth",
    "prune_structured",
    "random_masks",
    "sensitivity",
    "sequential_masks_",
]
