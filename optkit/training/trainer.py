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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from optkit.core.environment import cpu
from optkit.core.errors import StageError
from optkit.core.layout import channels_last_
from optkit.core.metric import observed, stacked
from optkit.core.progress import track
from optkit.core.seeds import derive_seed
from optkit.core.structure import as_float
from optkit.core.task import Batch, Task
from optkit.training.callbacks import Callback
from optkit.training.checkpoint import load_state, save_state
from optkit.training.config import Trainer
from optkit.training.objectives import ChoosesBatches, Objective, OwnParameters
from optkit.training.schedules import build_optimizer, build_schedule

log = logging.getLogger(__name__)


@dataclass
class FitReport:
    """What training did: one loss and one validation metric (the task's first) an epoch, the epoch kept, the precision
    it ran in, seconds over all attempts."""

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


class Fit:
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
        self.metric = task.metrics[0]
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
        # an epoch seeds torch's generators; the caller's go on from where they were
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
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
            f", validation {self.metric.name} {self.validation[-1]:.4g}" if self.validation else "",
        )
        self._save(seconds)

    def _validate(self) -> None:
        self.module.eval()
        with torch.inference_mode():
            batches = self.task.batches("validation", 4 * self.config.batch_size)
            table = stacked(
                [observed(self.metric, as_float(self.task.forward(self.module, b)), b) for b in self._moved(batches)]
            )
        self.module.train()
        self.validation.append(self.metric.value(table))
        if self._best_epoch() == len(self.validation) - 1:
            self.best = _copy_state(self.module)

    def _best_epoch(self) -> int:
        """The first of the best, counted from 0."""
        best = np.argmax if self.metric.higher_is_better else np.argmin
        return int(best(self.validation))

    def _moved(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        return (batch.to(self.device) for batch in batches)

    def _out_of_patience(self) -> bool:
        if self.config.patience is None or not self.validation:
            return False
        return len(self.validation) - 1 - self._best_epoch() >= self.config.patience

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
            return f"epoch {self._best_epoch() + 1}"
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
