"""Pruning: masks and structured cuts as pure functions, and their stages."""

from optkit.prune.curves import Curve, Sensitivity, sensitivity
from optkit.prune.gradual import GradualMasks, GradualPruning, cubic_sparsity
from optkit.prune.masking import MagnitudePruning
from optkit.prune.masks import Pattern, apply_masks_, magnitude_masks
from optkit.prune.plan import CutPlan
from optkit.prune.stages import StructuredPruning
from optkit.prune.structured import Pruned, prune_structured

__all__ = [
    "Curve",
    "CutPlan",
    "GradualMasks",
    "GradualPruning",
    "MagnitudePruning",
    "Pattern",
    "Pruned",
    "Sensitivity",
    "StructuredPruning",
    "apply_masks_",
    "cubic_sparsity",
    "magnitude_masks",
    "prune_structured",
    "sensitivity",
]
