"""The one training loop, in one process and on one device.

Mixed precision is ``torch.autocast``. accelerate keeps one precision and one device for a whole process, which may hold
the user's own code and several trainings; it pays where there are several processes.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from optkit.core.allocator import keep_freed_memory
from optkit.core.checks import check_count, is_number
from optkit.core.environment import cpu
from optkit.core.errors import StageError, UserError, did_you_mean
from optkit.core.layout import channels_last_
from optkit.core.progress import track
from optkit.core.seeds import derive_seed
from optkit.core.stage import KeyContext
from optkit.core.task import Batch, Task
from optkit.training.callbacks import Callback
from optkit.training.checkpoint import load_state, save_state
from optkit.training.objectives import ChoosesBatches, Objective, OwnParameters
from optkit.training.schedules import SCHEDULES, build_optimizer, build_schedule, check_optimizer

log = logging.getLogger(__name__)
PRECISIONS = ("auto", "fp32", "bf16")
SELECTIONS = ("last", "best", "ema")


@dataclass
class Trainer:
    """How to train; its fields are the config group ``trainer``.

    Attributes:
        epochs: passes over the train split; in distillation, with what is unlabelled.
        batch_size: examples a step (a process).
        optimizer: a class of ``torch.optim`` by name, in any case.
        optimizer_options: its other arguments (``momentum``, ``betas``, ...); one that is None is left out.
        lr: the peak learning rate.
        weight_decay: applied to matrices and kernels, not to biases and norms.
        schedule: one_cycle, cosine or constant.
        warmup: share of the steps during which the rate rises.
        precision: bf16 (autocast), fp32, or auto: bf16 where the device has instructions for it.
        grad_clip: largest norm of the gradient; None for no clipping.
        label_smoothing: share of the target spread over all classes.
        ema_decay: decay a step of the weights' moving average, used by ``select: ema``.
        select: which weights to keep: of the last step, the best on validation, or the moving average.
        patience: stop after so many epochs without a better validation; None never stops early.
        channels_last: train convolutions in channels-last layout, which is faster on CPUs and GPUs.
    """

    epochs: int = 10
    batch_size: int = 128
    optimizer: str = "sgd"
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    lr: float = 0.1
    weight_decay: float = 5e-4
    schedule: str = "one_cycle"
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
        for name, known in (("schedule", SCHEDULES), ("precision", PRECISIONS), ("select", SELECTIONS)):
            value = getattr(self, name)
            if value not in known:
                raise UserError(f"no {name} '{value}'", key=name, value=value, fix=did_you_mean(str(value), known))
        self.optimizer_options = {k: v for k, v in self.optimizer_options.items() if v is not None}
        check_optimizer(self.optimizer, self.optimizer_options)

    def depends_on(self, context: KeyContext) -> dict[str, Any]:
        """The precision that ``auto`` means on this machine, the device, and on a CPU the threads."""
        return {"precision": choose_precision(self.precision, context.device), **context.on_device}

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
        and ends with the weights it would have had. On a CPU the process keeps freed memory from here on
        (`keep_freed_memory`).

        Raises:
            StageError: the loss is not finite.
        """
        if device.type == "cpu":
            keep_freed_memory()
        report = _Fit(self, module, task, objective, seed, workdir, device, callbacks, max_steps, description).run()
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what comes next may be timed in a process of its own, which needs the memory
        return report


@dataclass
class FitReport:
    """What training did: one loss and validation accuracy an epoch, the epoch kept, the precision it ran in, seconds
    over all attempts."""

    epochs: int
    steps: int
    losses: list[float]
    validation: list[float]
    kept: str
    precision: str
    seconds: float
    resumed_s: float = 0.0

    def facts(self) -> dict[str, Any]:
        return {"training": {k: v for k, v in asdict(self).items() if k != "resumed_s"}}


class _Fit:
    """One call of `Trainer.fit`: the state of the loop, and its steps."""

    def __init__(
        self,
        trainer: Trainer,
        module: nn.Module,
        task: Task,
        objective: Objective,
        seed: int,
        workdir: Path,
        device: torch.device,
        callbacks: Sequence[Callback],
        max_steps: int | None,
        description: str,
    ):
        self.config, self.module, self.task, self.objective = trainer, module, task, objective
        self.seed, self.workdir, self.device, self.callbacks = seed, workdir, device, callbacks
        self.description = description
        self.own = objective.own if isinstance(objective, OwnParameters) else nn.Module()
        self.split = getattr(objective, "split", "train")
        self.steps_per_epoch = math.ceil(task.size(self.split) / trainer.batch_size)
        self.total = min(self.steps_per_epoch * trainer.epochs, max_steps or math.inf)
        self.epoch = self.step = 0
        self.losses: list[float] = []
        self.validation: list[float] = []
        self.best: dict[str, Tensor] | None = None
        self.ema: dict[str, Tensor] | None = None
        self.resumed_s = 0.0

    def run(self) -> FitReport:
        started = time.perf_counter()
        precision = choose_precision(self.config.precision, self.device)
        self._prepare()
        for _ in track(self._epochs(precision, started), self.description, int(self.total)):
            pass
        for callback in self.callbacks:
            callback.on_train_end(self.module)
        kept = self._keep()
        self.module.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
        seconds = self.resumed_s + time.perf_counter() - started
        return FitReport(self.epoch, self.step, self.losses, self.validation, kept, precision, seconds, self.resumed_s)

    def _prepare(self) -> None:
        """Makes everything ready for the next step."""
        c = self.config
        for module in (self.module, self.own):
            module.to(self.device, memory_format=torch.contiguous_format).train()  # type: ignore[call-overload]
            if c.channels_last:
                channels_last_(module)
        self.optimizer = build_optimizer(self._parameters(), c.optimizer, c.lr, c.weight_decay, c.optimizer_options)
        self.schedule = build_schedule(self.optimizer, c.schedule, c.warmup, int(self.total))
        for callback in self.callbacks:
            callback.on_train_begin(self.module)
        self._resume()

    def _epochs(self, precision: str, started: float) -> Iterator[int]:
        """Trains to the end, yielding after every step."""
        yield from range(self.step)
        while self.step < self.total and not self._out_of_patience():
            batches = self._batches()
            # everything random in an epoch follows from the seed and its number, so a resumed run draws the same
            torch.manual_seed(derive_seed(self.seed, "noise", self.epoch))
            losses: list[Tensor] = []
            for batch in batches:
                if self.step >= self.total:
                    break
                losses.append(self._one_step(precision, batch))
                self.step += 1
                for callback in self.callbacks:
                    callback.on_step_end(self.module, self.step, int(self.total))
                if self.config.select == "ema":
                    self._update_ema()
                yield self.step
            self._finish_epoch(losses, self.resumed_s + time.perf_counter() - started)

    def _batches(self) -> Iterator[Batch]:
        chooses = isinstance(self.objective, ChoosesBatches)
        chosen = self.objective.batches_seed(self.epoch) if chooses else None  # type: ignore[attr-defined]
        seed = derive_seed(self.seed, "order", self.epoch) if chosen is None else chosen
        return self.task.batches(self.split, self.config.batch_size, training=True, seed=seed)

    def _one_step(self, precision: str, batch: Batch) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = self.objective(self.module, batch.to(self.device))
        loss.backward()
        if self.config.grad_clip is not None:
            nn.utils.clip_grad_norm_(self._parameters(), self.config.grad_clip)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def _parameters(self) -> list[nn.Parameter]:
        return [*self.module.parameters(), *self.own.parameters()]

    def _finish_epoch(self, losses: list[Tensor], seconds: float) -> None:
        mean = float(torch.stack(losses).mean())
        if not math.isfinite(mean):
            fix = "lower trainer.lr, or set trainer.precision=fp32 or trainer.grad_clip=1"
            raise StageError(f"the loss became {mean} in epoch {self.epoch + 1}", fix=fix)
        self.losses.append(round(mean, 6))
        self.epoch += 1
        for callback in self.callbacks:
            callback.on_epoch_end(self.module, self.epoch)
        if self.config.select == "best" or self.config.patience is not None:
            self._validate()
        log.info(
            "%s: epoch %d of %d, loss %.4f%s",
            self.description,
            self.epoch,
            math.ceil(self.total / self.steps_per_epoch),
            mean,
            f", validation {self.validation[-1]:.4f}" if self.validation else "",
        )
        self._save(seconds)

    def _validate(self) -> None:
        self.module.eval()
        with torch.inference_mode():
            batches = self.task.batches("validation", 4 * self.config.batch_size)
            correct = [
                self.task.correct(self.task.forward(self.module, b), b).cpu().numpy() for b in self._moved(batches)
            ]
        self.module.train()
        score = self.task.metric(np.concatenate(correct))
        if not self.validation or score > max(self.validation):
            self.best = _copy_state(self.module)
        self.validation.append(score)

    def _moved(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        return (batch.to(self.device) for batch in batches)

    def _out_of_patience(self) -> bool:
        if self.config.patience is None or not self.validation:
            return False
        return len(self.validation) - 1 - int(np.argmax(self.validation)) >= self.config.patience

    def _update_ema(self) -> None:
        if self.ema is None:
            self.ema = _copy_state(self.module)
        # a young average forgets fast, or it would remember the first weights for ever
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, tensor in self.module.state_dict().items():
                if tensor.is_floating_point():
                    self.ema[name].lerp_(tensor, 1 - decay)
                else:
                    self.ema[name].copy_(tensor)

    def _keep(self) -> str:
        chosen = {"last": None, "best": self.best, "ema": self.ema}[self.config.select]
        if chosen is not None:
            self.module.load_state_dict(chosen)
        if self.config.select == "best":
            return f"epoch {int(np.argmax(self.validation)) + 1}"
        return self.config.select

    def _save(self, seconds: float) -> None:
        state = {
            "model": self.module.state_dict(),
            "own": self.own.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": {"last_epoch": self.schedule.last_epoch},
            "best": self.best,
            "ema": self.ema,
            "callbacks": [callback.state_dict() for callback in self.callbacks],
            "counts": [self.epoch, self.step],
            "curves": [self.losses, self.validation],
            "seconds": seconds,
        }
        save_state(self.workdir, state)

    def _resume(self) -> None:
        state = load_state(self.workdir)
        if state is None:
            return
        self.module.load_state_dict(state["model"])
        self.own.load_state_dict(state["own"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(self.schedule.state_dict() | state["schedule"])
        self.best = state["best"]
        if state["ema"] is not None:  # goes on where the weights are; the state is read to the CPU
            self.ema = {name: tensor.to(self.device) for name, tensor in state["ema"].items()}
        for callback, saved in zip(self.callbacks, state["callbacks"], strict=True):
            callback.load_state_dict(saved)
        self.epoch, self.step = state["counts"]
        self.losses, self.validation = state["curves"]
        self.resumed_s = state["seconds"]
        log.info("%s: goes on after epoch %d", self.description, self.epoch)


def _copy_state(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def choose_precision(precision: str, device: torch.device) -> str:
    """``auto`` made definite: without bf16 instructions, autocast trains several times slower than fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if {"avx512_bf16", "amx_bf16", "bf16"} & set(cpu()["isa"]) else "fp32"
