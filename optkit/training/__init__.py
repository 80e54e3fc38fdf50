"""The one training loop, its objectives and callbacks."""

from typing import TYPE_CHECKING

from optkit.core.lazy import lazy_names

if TYPE_CHECKING:
    from optkit.training.callbacks import Callback, KeepZeros
    from optkit.training.config import Trainer, check_sharding
    from optkit.training.objectives import ChoosesBatches, Objective, OwnParameters, TaskLoss
    from optkit.training.stages import Train, fit_stage
    from optkit.training.trainer import FitReport
    from optkit.training.training_stage import LooksInside, Training, check_training, split_of
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "Callback",
    "ChoosesBatches",
    "FitReport",
    "KeepZeros",
    "LooksInside",
    "Objective",
    "OwnParameters",
    "TaskLoss",
    "Train",
    "Trainer",
    "Training",
    "check_sharding",
    "check_training",
    "fit_stage",
    "split_of",
]
