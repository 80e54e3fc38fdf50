"""Distillation from a teacher: losses, feature taps, and the stage."""

from typing import TYPE_CHECKING

from optkit.core.lazy import lazy_names

if TYPE_CHECKING:
    from optkit.distill.features import (
        attention_map_loss,
        attention_transfer_loss,
        hint_loss,
        relation_loss,
        rkd_loss,
        similarity_loss,
    )
    from optkit.distill.from_loader import distill_from
    from optkit.distill.losses import (
        dist_loss,
        dkd_loss,
        embedding_kd_loss,
        kd_loss,
        label_kd_loss,
        map_dist_loss,
        map_kd_loss,
        token_kd_loss,
        value_kd_loss,
    )
    from optkit.distill.objective import DistillationObjective
    from optkit.distill.stages import Distillation
    from optkit.distill.taps import Taps, tapping
    from optkit.distill.terms import KINDS
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "KINDS",
    "Distillation",
    "DistillationObjective",
    "Taps",
    "attention_map_loss",
    "attention_transfer_loss",
    "dist_loss",
    "distill_from",
    "dkd_loss",
    "embedding_kd_loss",
    "hint_loss",
    "kd_loss",
    "label_kd_loss",
    "map_dist_loss",
    "map_kd_loss",
    "relation_loss",
    "rkd_loss",
    "similarity_loss",
    "tapping",
    "token_kd_loss",
    "value_kd_loss",
]
