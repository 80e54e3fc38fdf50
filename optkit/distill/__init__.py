"""Distillation from a teacher: losses, feature taps, and the stage."""

from optkit.distill.features import (
    attention_map_loss,
    attention_transfer_loss,
    hint_loss,
    relation_loss,
    rkd_loss,
    similarity_loss,
)
from optkit.distill.losses import dist_loss, dkd_loss, kd_loss
from optkit.distill.objective import DistillationObjective
from optkit.distill.stages import Distillation
from optkit.distill.taps import Taps, tapping
from optkit.distill.terms import KINDS

__all__ = [
    "KINDS",
    "Distillation",
    "DistillationObjective",
    "Taps",
    "attention_map_loss",
    "attention_transfer_loss",
    "dist_loss",
    "dkd_loss",
    "hint_loss",
    "kd_loss",
    "relation_loss",
    "rkd_loss",
    "similarity_loss",
    "tapping",
]
