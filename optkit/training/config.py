"""How to train: the fields of the config group ``trainer``, checked without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.core.checks import check_count, is_number
from optkit.core.errors import UserError, did_you_mean
from optkit.core.instantiate import NAMED
from optkit.core.stage import KeyContext
from optkit.core.task import EMBEDDINGS, LABELS, VALUES, Task
from optkit.training.callbacks import Callback
from optkit.training.objectives import Objective
from optkit.training.optimizers import check_optimizer
from optkit.training.schedules import check_schedule

if TYPE_CHECKING:
    import torch
    from torch import nn

    from optkit.training.trainer import FitReport

PRECISIONS = ("auto", "fp32", "bf16")
SELECTIONS = ("last", "best", "ema")


@dataclass
class Trainer:
    """How to train; its fields are the config group ``trainer``.

    Attributes:
        epochs: passes over the train split; in distillation, with what is unlabelled.
        batch_size: examples a step (a process).
        optimizer: a class of ``torch.optim`` by name, in any case; or the dotted path of your own, a class or function
            that is called as ``f(groups of parameters, lr=..., **optimizer_options)``.
        optimizer_options: its other arguments (``momentum``, ``betas``, ...); one that is None is left out.
        lr: the peak learning rate.
        weight_decay: applied to matrices and kernels, not to biases and norms.
        schedule: one_cycle, cosine or constant; or the dotted path of your own, a function
            ``f(progress, warmup) -> factor of lr``, with progress from 0 to 1.
        warmup: share of the steps during which the rate rises.
        precision: bf16 (autocast), fp32, or auto: bf16 where the device has instructions for it.
        grad_clip: largest norm of the gradient; None for no clipping.
        label_smoothing: share of the target spread over all classes; 0 for tasks whose targets are no classes.
        ema_decay: decay a step of the weights' moving average, used by ``select: ema``.
        select: which weights to keep: of the last step, the best on validation, or the moving average.
        patience: stop after so many epochs without a better validation; None never stops early.
        channels_last: train convolutions in channels-last layout, which is faster on CPUs and GPUs.
    """

    epochs: int = 10
    batch_size: int = 128
    optimizer: str = field(default="sgd", metadata=NAMED)
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    lr: float = 0.1
    weight_decay: float = 5e-4
    schedule: str = field(default="one_cycle", metadata=NAMED)
    warmup: float = 0.2
    precision: str = "auto"
    grad_clip: float | None = None
    label_smoothing: float = 0.0
    ema_decay: float = 0.999
    select: str = "last"
    patience: int | None = None
    channels_last: bool = True

    def __post_init__(self) -> None:
        check_count("epochs", self.epochs)
        check_count("batch_size", self.batch_size)
        if self.patience is not None:
            check_count("patience", self.patience)
        for name, low, high in (
            ("lr", 0, math.inf),
            ("weight_decay", 0, math.inf),
            ("warmup", 0, 0.99),
            ("label_smoothing", 0, 0.99),
            ("ema_decay", 0, 1),
            ("grad_clip", 0, math.inf),
        ):
            value = getattr(self, name)
            if name == "grad_clip" and value is None:
                continue
            if not is_number(value) or not math.isfinite(value) or not low <= value <= high:
                fix = f"{low} to {high}" if high < math.inf else f"a number of at least {low}"
                raise UserError(f"{value!r} is out of range", key=name, value=value, fix=fix)
        check_schedule(self.schedule, self.warmup)
        for name, known in (("precision", PRECISIONS), ("select", SELECTIONS)):
            value = getattr(self, name)
            if value not in known:
                raise UserError(f"no {name} '{value}'", key=name, value=value, fix=did_you_mean(str(value), known))
        self.optimizer_options = {k: v for k, v in self.optimizer_options.items() if v is not None}
        check_optimizer(self.optimizer, self.optimizer_options)

    def depends_on(self, context: KeyContext) -> dict[str, Any]:
        """The precision that ``auto`` means on this machine, the device, and on a CPU the threads."""
        from optkit.training.trainer import choose_precision

        return {"precision": choose_precision(self.precision, context.device), **context.on_device}

    def check(self, module: nn.Module, task: Task) -> None:
        """Raises UserError for label smoothing where the task's targets are no classes."""
        if not self.label_smoothing:
            return
        import torch

        if task.output_kind in (LABELS, VALUES, EMBEDDINGS):
            message = f"only the targets of classes are smoothed, and this task's outputs are {task.output_kind}"
            raise UserError(message, key="label_smoothing", value=self.label_smoothing, fix="set it to 0")
        batch = next(task.batches("train", 2))
        with torch.no_grad():
            task.loss(task.forward(module, batch), batch, self.label_smoothing)

    def fit(
        self,
        module: nn.Module,
        task: Task,
        objective: Objective,
        *,
        seed: int,
        workdir: Path,
        device: torch.device,
        callbacks: Sequence[Callback] = (),
        max_steps: int | None = None,
        description: str = "training",
    ) -> FitReport:
        """Trains ``module`` in place.

        The state is saved in ``workdir`` after every epoch; called again after a kill, training goes on from there
        and ends with the weights it would have had. Torch's random generators are afterwards as they were before.

        On a CPU `keep_freed_memory`, called once before, spares page faults in every step; recipes do it.

        Raises:
            StageError: the loss is not finite.
        """
        import torch

        from optkit.training.trainer import Fit

        report = Fit(self, module, task, objective, seed, workdir, device, callbacks, max_steps, description).run()
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what comes next may be timed in a process of its own, which needs the memory
        return report
