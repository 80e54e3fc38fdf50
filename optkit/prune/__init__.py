"""Pruning: masks and structured cuts as pure functions, and their stages."""

from optkit.prune.masks import apply_masks_, magnitude_masks
from optkit.prune.plan import CutPlan
from optkit.prune.stages import MagnitudePruning, StructuredPruning
from optkit.prune.structured import Pruned, prune_structured

__all__ = [
    "CutPlan",
    "MagnitudePruning",
    "Pruned",
    "StructuredPruning",
    "apply_masks_",
    "magnitude_masks",
    "prune_structured",
]
