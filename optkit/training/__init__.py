"""The one training loop, its objectives and callbacks."""

from optkit.training.callbacks import Callback, KeepZeros
from optkit.training.objectives import ChoosesBatches, Objective, OwnParameters, TaskLoss
from optkit.training.stages import Train, fit_stage
from optkit.training.trainer import FitReport, Trainer
from optkit.training.training_stage import LooksInside, Training, check_training, split_of

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
    "check_training",
    "fit_stage",
    "split_of",
]
