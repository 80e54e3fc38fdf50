"""Teacher-student distillation: losses, and their stages."""

from optkit.distill.losses import kd_loss
from optkit.distill.stages import LogitDistillation, LogitObjective

__all__ = ["LogitDistillation", "LogitObjective", "kd_loss"]
