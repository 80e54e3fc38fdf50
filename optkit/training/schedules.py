"""Optimizers and learning-rate schedules by name or dotted path."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from optkit.core.checks import is_number
from optkit.core.errors import UserError, first_line
from optkit.core.instantiate import own_part
from optkit.training.optimizers import optimizer_class

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FUSED = ("sgd", "adam", "adamw")  # one kernel a step on CPUs and GPUs
FUSED_SHARDS = ("adam", "adamw")  # torch has it for these where parameters are spread over processes
HOW = {"fused", "foreach", "differentiable"}  # of these torch takes one


def build_optimizer(
    parameters: Iterable[Tensor],
    name: str,
    lr: float,
    weight_decay: float,
    options: Mapping[str, Any],
    sharded: bool = False,
) -> torch.optim.Optimizer:
    """An optimizer that decays matrices and kernels, and leaves biases and norms alone.

    It steps in torch's fused kernel where there is one, unless the options say otherwise.
    """
    import torch

    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    fused = {"fused": True} if name.lower() in (FUSED_SHARDS if sharded else FUSED) and not HOW & set(options) else {}
    made = optimizer_class(name)(groups, lr=lr, **fused, **options)
    if not isinstance(made, torch.optim.Optimizer):
        message = f"'{name}' makes a {type(made).__name__}, no torch.optim.Optimizer"
        raise UserError(message, key="trainer.optimizer", value=name, fix="inherit torch.optim.Optimizer")
    return made


def _one_cycle(progress: float, warmup: float) -> float:
    """Linear from 0 to 1 over the warm-up, then linear to 0 (Smith and Topin, 2018)."""
    return progress / warmup if progress < warmup else (1 - progress) / (1 - warmup)


def _cosine(progress: float, warmup: float) -> float:
    """Linear warm-up, then half a cosine to 0 (Loshchilov and Hutter, 2017)."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def _constant(progress: float, warmup: float) -> float:
    return min(1.0, progress / warmup) if warmup else 1.0


SCHEDULES: Mapping[str, Callable[[float, float], float]] = {
    "one_cycle": _one_cycle,
    "cosine": _cosine,
    "constant": _constant,
}


def check_schedule(name: str, warmup: float) -> None:
    """Raises UserError for an unknown schedule, or one of one's own that gives no factors."""
    if (own := own_part(name, SCHEDULES, "schedule")) is None:
        return
    for progress in (0.0, 0.5, 1.0):
        try:
            factor = own(progress, warmup)
        except Exception as error:
            fix = "it is called as schedule(progress, warmup), with progress from 0 to 1"
            message = f"'{name}' fails at progress {progress}: {type(error).__name__}: {first_line(error)}"
            raise UserError(message, key="schedule", value=name, fix=fix) from error
        if not is_number(factor) or not 0 <= factor < math.inf:
            message = f"'{name}' gives {factor!r} at progress {progress}"
            raise UserError(message, key="schedule", value=name, fix="it must give a factor of lr, a number from 0 on")


def build_schedule(
    optimizer: torch.optim.Optimizer, name: str, warmup: float, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """A schedule over ``total_steps`` whose first ``warmup`` share rises from 0.

    Args:
        optimizer: whose rate it sets.
        name: in `SCHEDULES`, or the dotted path of ``f(progress, warmup) -> factor of lr``, with progress from 0 to 1.
        warmup: share of the steps.
        total_steps: of the training.
    """
    import torch

    shape = own_part(name, SCHEDULES, "schedule") or SCHEDULES[name]
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: shape(min(1.0, (step + 1) / (total_steps + 1)), warmup)
    )
