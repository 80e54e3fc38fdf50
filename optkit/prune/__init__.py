"""Pruning: masks and structured cuts as pure functions, and their stages."""

from optkit.prune.analysis import kept_whole
from optkit.prune.curves import Curve, Sensitivity, sensitivity
from optkit.prune.depth import DepthPlan, Shortened, prune_depth
from optkit.prune.gradual import GradualMasks, GradualPruning, cubic_sparsity
from optkit.prune.masking import MagnitudePruning
from optkit.prune.masks import Pattern, apply_masks_, magnitude_masks
from optkit.prune.plan import CutPlan
from optkit.prune.shortening import DepthPruning
from optkit.prune.stages import StructuredPruning
from optkit.prune.structured import Pruned, prune_structured

__all__ = [
    "Curve",
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
    "sensitivity",
]
