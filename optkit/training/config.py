"""How to train: the fields of the config group ``trainer``, checked without torch."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.core.checks import check_choice, check_count, is_number
from optkit.core.errors import UserError, did_you_mean
from optkit.core.instantiate import NAMED, UNKEYED
from optkit.core.processes import current
from optkit.core.stage import KeyContext
from optkit.core.task import EMBEDDINGS, LABELS, VALUES, Task
from optkit.engines.compiler import missing_compiler
from optkit.training.callbacks import Callback
from optkit.training.lora import adapters, read_lora
from optkit.training.objectives import Objective
from optkit.training.optimizers import check_optimizer
from optkit.training.schedules import check_schedule

if TYPE_CHECKING:
    import torch
    from torch import nn

    from optkit.training.trainer import FitReport

PRECISIONS = ("auto", "fp32", "bf16")
SELECTIONS = ("last", "best", "ema")
SHARDINGS = (NONE, FSDP) = ("none", "fsdp")


@dataclass
class Trainer:
    """How to train; its fields are the config group ``trainer``.

    Attributes:
        epochs: passes over the train split; in distillation, with what is unlabelled.
        batch_size: examples a step, of all processes together. The learning rate belongs to it, so that the number of
            processes changes neither steps nor rate.
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
        lora: the fields of `optkit.training.lora.LoRA`, such as ``{rank: 16}``: adapters are trained in place of the
            weights, and merged into them afterwards. None trains the weights themselves.
        compile: run the training step compiled by inductor, which takes a minute first.
        micro_batch_size: examples that a process handles at once, at most; gradients are summed up over the passes of a
            step. None handles its share of the batch in one pass.
        sharding: how several processes hold the parameters: ``none``, each has all (DDP), or ``fsdp``, each has a part
            (FSDP2). None asks ``accelerate launch``, and is otherwise ``none``.
        checkpoint_steps: save the training's state after so many steps; None for no such limit.
        checkpoint_minutes: the same in minutes. The state is saved after every epoch in any case.
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
    lora: dict[str, Any] | None = None
    compile: bool = False
    micro_batch_size: int | None = field(default=None, metadata=UNKEYED)
    sharding: str | None = field(default=None, metadata=UNKEYED)
    checkpoint_steps: int | None = field(default=None, metadata=UNKEYED)
    checkpoint_minutes: float | None = field(default=10.0, metadata=UNKEYED)

    def __post_init__(self) -> None:
        check_count("epochs", self.epochs)
        check_count("batch_size", self.batch_size)
        for name in ("patience", "micro_batch_size", "checkpoint_steps"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        minutes = self.checkpoint_minutes
        if minutes is not None and not (is_number(minutes) and 0 < minutes < math.inf):
            fix = "a number above 0, or null"
            raise UserError(f"{minutes!r} are no minutes", key="checkpoint_minutes", value=minutes, fix=fix)
        check_choice("compile", self.compile, (True, False))
        if self.sharding is not None:
            check_choice("sharding", self.sharding, SHARDINGS)
        for name, low, high in (
            ("lr", 0, math.inf),
            ("weight_decay", 0, math.inf),
            ("warmup", 0, 0.99),
            ("label_smoothing", 0, 0.99),
            ("ema_decay", 0, 1),
            ("grad_clip", 0, math.inf),
        ):
            value = getattr(self, name)
            if name == "grad_clip":
                if value is None:
                    continue
                if value == 0:
                    raise UserError("0 would stop all training", key=name, value=value, fix="null clips nothing")
            if not is_number(value) or not math.isfinite(value) or not low <= value <= high:
                fix = f"{low} to {high}" if high < math.inf else f"a number of at least {low}"
                raise UserError(f"{value!r} is out of range", key=name, value=value, fix=fix)
        check_schedule(self.schedule, self.warmup)
        for name, known in (("precision", PRECISIONS), ("select", SELECTIONS)):
            value = getattr(self, name)
            if value not in known:
                raise UserError(f"no {name} '{value}'", key=name, value=value, fix=did_you_mean(str(value), known))
        if not isinstance(self.optimizer_options, Mapping):
            message = f"{self.optimizer_options!r} is not a mapping"
            raise UserError(message, key="optimizer_options", value=self.optimizer_options, fix="{} sets none")
        self.optimizer_options = {k: v for k, v in self.optimizer_options.items() if v is not None}
        check_optimizer(self.optimizer, self.optimizer_options)
        if self.lora is not None:
            read_lora(self.lora)

    def depends_on(self, context: KeyContext) -> dict[str, Any]:
        """The precision that ``auto`` means on this machine, the device, and on a CPU the threads."""
        from optkit.training.trainer import choose_precision

        return {"precision": choose_precision(self.precision, context.device), **context.on_device}

    def check(self, module: nn.Module, task: Task) -> None:
        """Raises UserError for what cannot work: label smoothing where the task's targets are no classes, adapters
        without a linear layer to adapt, more processes than examples a step, a compiled step without a compiler."""
        if current().size > self.batch_size:
            message = f"{self.batch_size} examples a step, for {current().size} processes"
            raise UserError(message, key="batch_size", value=self.batch_size, fix="start fewer processes")
        if self.compile and (reason := missing_compiler()):
            raise UserError(reason, key="compile", fix="or compile=false")
        check_sharding(self)
        if self.lora is not None:
            read_lora(self.lora).check(module)
        self._check_single_examples(module, task)
        if not self.label_smoothing:
            return
        import torch

        if task.output_kind in (LABELS, VALUES, EMBEDDINGS):
            message = f"only the targets of classes are smoothed, and this task's outputs are {task.output_kind}"
            raise UserError(message, key="label_smoothing", value=self.label_smoothing, fix="set it to 0")
        batch = next(task.batches("train", 2))
        with torch.no_grad():
            task.loss(task.forward(module, batch), batch, self.label_smoothing)

    def _check_single_examples(self, module: nn.Module, task: Task) -> None:
        """Raises UserError where a step has one example, and normalization over the batch needs more than one value."""
        import torch
        from torch import nn

        from optkit.core.model_copy import duplicate
        from optkit.training.shares import Shares

        shares, size = Shares(self.batch_size, self.micro_batch_size, current()), task.size("train")
        counts = {min(size, self.batch_size), size % self.batch_size} - {0}
        norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
        if min(map(shares.least, counts)) > 1 or not any(isinstance(one, norms) for one in module.modules()):
            return
        try:
            with torch.no_grad():
                task.forward(duplicate(module, {}).train(), next(task.batches("train", 1)))
        except ValueError as error:
            key = "batch_size" if self.micro_batch_size is None else "micro_batch_size"
            message = f"of {size} examples a step has a single one, and this model's batch normalization needs more"
            value = getattr(self, key)
            raise UserError(message, key=key, value=value, fix=f"such as {key}={value + 1}") from error

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

        The state is saved in ``workdir`` after every epoch, and within one as the fields say; called again after a
        kill, training goes on from there and ends with the weights it would have had. In a run of several processes
        (`optkit.core.processes`) all call it. Torch's random generators are afterwards as they were before.

        On a CPU `keep_freed_memory`, called once before, spares page faults in every step; recipes do it.

        Raises:
            StageError: the loss is not finite.
            UserError: a callback that sharded parameters do not work with.
            Interruption: SIGTERM or SIGUSR1 came; the state is saved.
        """
        import torch

        from optkit.training.trainer import Fit

        with adapters(module, None if self.lora is None else read_lora(self.lora), seed):
            report = Fit(self, module, task, objective, seed, workdir, device, callbacks, max_steps, description).run()
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what comes next may be timed in a process of its own, which needs the memory
        return report


def sharding_of(trainer: Trainer) -> str:
    """How this run holds the parameters that a trainer trains: as it says, or as ``accelerate launch`` was told."""
    if not current().several:
        return NONE
    asked = os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true", "yes")
    return trainer.sharding or (FSDP if asked else NONE)


def check_sharding(trainer: Trainer, callbacks: Sequence[Callback] = (), key: str = "trainer.sharding") -> None:
    """Raises UserError for what does not go with parameters that are spread over the processes."""
    if sharding_of(trainer) == NONE:
        return
    if trainer.compile:
        raise UserError("the step of sharded parameters is not compiled", key="compile", fix="or sharding=none")
    for callback in callbacks:
        if not callback.works_on_shards:
            message = f"{type(callback).__name__} looks at whole parameters, of which each process would hold a part"
            raise UserError(message, key=key, value=FSDP, fix="set it to none")
