"""The one training loop, in one process or in several.

Several processes take their shares of the batches that one process would see, so that order, steps and learning rate
are those of one. Mixed precision is ``torch.autocast``.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from optkit.core.environment import cpu
from optkit.core.errors import DeadEndError
from optkit.core.interruption import Interruption, asked, ends_at_once, heard, saves_when_asked
from optkit.core.layout import channels_last_
from optkit.core.processes import current
from optkit.core.progress import track
from optkit.core.seeds import derive_seed
from optkit.core.task import Batch, Task
from optkit.core.turns import give_way
from optkit.training.callbacks import Callback
from optkit.training.checkpoint import Schedule, load_state, save_state
from optkit.training.config import Trainer, check_sharding, sharding_of
from optkit.training.noise import Noise
from optkit.training.objectives import ChoosesBatches, Objective, OwnParameters
from optkit.training.replicas import Replica, Shards
from optkit.training.schedules import HOW, build_optimizer, build_schedule
from optkit.training.shares import Shares, read_shares
from optkit.training.validating import validate

log = logging.getLogger(__name__)


@dataclass
class FitReport:
    """What training did: one loss and one validation metric (the task's first) an epoch, the epoch kept, the precision
    it ran in, seconds over all attempts.

    Attributes:
        batch_size: examples a step, of all processes together; the learning rate belongs to it.
        processes: that trained, in the last attempt.
        examples_at_once: that a process handled, at most.
        accumulation_steps: passes that a process made for a step.
        sharding: of the parameters.
        earlier_processes: numbers of processes of earlier attempts.
    """

    epochs: int
    steps: int
    losses: list[float]
    validation: list[float]
    kept: str
    precision: str
    batch_size: int
    processes: int
    examples_at_once: int
    accumulation_steps: int
    sharding: str
    seconds: float
    resumed_s: float = 0.0
    earlier_processes: list[int] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        left_out = {"resumed_s", *([] if self.earlier_processes else ["earlier_processes"])}
        return {"training": {k: v for k, v in asdict(self).items() if k not in left_out}}


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
        self.processes = current()
        self.shares = Shares(trainer.batch_size, trainer.micro_batch_size, self.processes)
        self.sharding = sharding_of(trainer)
        self.noise = Noise(seed, device, self.processes)
        self.save_schedule = Schedule(trainer.checkpoint_steps, trainer.checkpoint_minutes)
        self.metric = task.metrics[0]
        self.own = objective.own if isinstance(objective, OwnParameters) else nn.Module()
        self.split = getattr(objective, "split", "train")
        self.steps_per_epoch = math.ceil(task.size(self.split) / trainer.batch_size)
        self.total = min(self.steps_per_epoch * trainer.epochs, max_steps or math.inf)
        self.epoch = self.step = 0
        self.of_epoch: list[Tensor] = []  # this process's part of the losses of the epoch's steps so far
        self.unvalidated = False
        self.losses: list[float] = []
        self.validation: list[float] = []
        self.best: dict[str, Tensor] | None = None
        self.ema: dict[str, Tensor] | None = None
        self.resumed_s = 0.0
        self.attempts: list[int] = []

    def run(self) -> FitReport:
        self.started = time.perf_counter()
        self.precision = choose_precision(self.config.precision, self.device)
        # an epoch seeds torch's generators; the caller's go on from where they were
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            self._prepare()
            for _ in track(self._epochs(), self.description, int(self.total)):
                pass
        for callback in self.callbacks:
            callback.on_train_end(self.module)
        kept = self._keep()
        self.replica.restore()
        self.module.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
        return FitReport(
            epochs=self.epoch,
            steps=self.step,
            losses=self.losses,
            validation=self.validation,
            kept=kept,
            precision=self.precision,
            batch_size=self.config.batch_size,
            processes=self.processes.size,
            examples_at_once=self.shares.at_once,
            accumulation_steps=self.shares.accumulated,
            sharding=self.sharding,
            seconds=self._seconds(),
            resumed_s=self.resumed_s,
            earlier_processes=self.attempts,
        )

    def _prepare(self) -> None:
        """Makes everything ready for the next step."""
        c = self.config
        check_sharding(c, self.callbacks)
        for module in (self.module, self.own):
            module.to(self.device, memory_format=torch.contiguous_format).train()  # type: ignore[call-overload]
            if c.channels_last:
                channels_last_(module)
        if self.sharding == "none":
            self.replica = Replica(self.module, self.own, self.processes, c.compile)
        else:
            self.replica = Shards(self.module, self.own, self.processes, self.task)
        parameters, sharded = self.replica.parameters(), self.sharding != "none"
        self.optimizer = build_optimizer(parameters, c.optimizer, c.lr, c.weight_decay, c.optimizer_options, sharded)
        self.schedule = build_schedule(self.optimizer, c.schedule, c.warmup, int(self.total))
        for callback in self.callbacks:
            callback.on_train_begin(self.module)
        self._resume()

    def _epochs(self) -> Iterator[int]:
        """Trains to the end, yielding after every step."""
        yield from range(self.step)
        with saves_when_asked():
            if self.unvalidated:
                self._end_epoch()
            while self.of_epoch or (self.step < self.total and not self._out_of_patience()):
                for batch, count in self._batches():
                    if self.step >= self.total:
                        break
                    self._one_step(batch, count)
                    self._save_if_due()
                    self.started += give_way(asked)
                    yield self.step
                self._finish_steps()
                self._end_epoch()

    def _batches(self) -> Iterator[tuple[Batch, int]]:
        """This process's shares of the batches that are left of an epoch, and the sizes of the batches.

        What is random in them follows from the seed and the epoch's number.
        """
        chooses = isinstance(self.objective, ChoosesBatches)
        with ends_at_once():
            chosen = self.objective.batches_seed(self.epoch) if chooses else None  # type: ignore[attr-defined]
        seed = derive_seed(self.seed, "order", self.epoch) if chosen is None else chosen
        batches = read_shares(self.task, self.processes, self.split, self.config.batch_size, training=True, seed=seed)
        return self.noise.during(islice(batches, len(self.of_epoch), None), self.epoch, self.step)

    def _one_step(self, batch: Batch, count: int) -> None:
        total, seen, scale = None, 0.0, self.processes.size
        parts = list(self.shares.of(batch, count))
        for number, (part, weight) in enumerate(parts, 1):
            with self.replica.accumulating(number < len(parts)):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    loss = self.replica.run(self.objective, part.to(self.device))
                # the gradient of several processes is the mean of theirs
                (loss if weight * scale == 1 else loss * (weight * scale)).backward()
            counted = loss.detach() if weight == 1 else loss.detach() * weight
            total, seen = counted if total is None else total + counted, seen + weight
        if self.config.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.replica.parameters(), self.config.grad_clip)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.replica.buffers.agree(seen)
        assert total is not None
        self.of_epoch.append(total)
        self.step += 1
        for callback in self.callbacks:
            callback.on_step_end(self.module, self.step, int(self.total))
        if self.config.select == "ema":
            self._update_ema()

    def _finish_steps(self) -> None:
        """Ends the steps of an epoch: its loss, and what callbacks do."""
        mean = float(self.processes.sum(torch.stack(self.of_epoch)).mean())
        if not math.isfinite(mean):
            fix = "lower trainer.lr, or set trainer.precision=fp32 or trainer.grad_clip=1"
            raise DeadEndError(f"the loss became {mean} in epoch {self.epoch + 1}", fix=fix)
        self.losses.append(round(mean, 6))
        self.epoch += 1
        self.of_epoch = []
        self.replica.buffers.agree(1 / self.processes.size, everything=True)
        for callback in self.callbacks:
            callback.on_epoch_end(self.module, self.epoch)
        self.unvalidated = True

    def _end_epoch(self) -> None:
        if self.config.select == "best" or self.config.patience is not None:
            self._validate()
        self.unvalidated = False
        log.info(
            "%s: epoch %d of %d, loss %.4f%s",
            self.description,
            self.epoch,
            math.ceil(self.total / self.steps_per_epoch),
            self.losses[-1],
            f", validation {self.metric.name} {self.validation[-1]:.4g}" if self.validation else "",
        )
        self._save()

    def _validate(self) -> None:
        self.module.eval()
        table = validate(self.replica, self.task, self.shares.handled, self.device, self._save_if_due)
        self.module.train()
        self.validation.append(self.metric.value(table))
        if self._best_epoch() == len(self.validation) - 1:
            self.best = _copy_state(self.module)

    def _best_epoch(self) -> int:
        """The first of the best, counted from 0."""
        values = np.array(self.validation) * (1 if self.metric.higher_is_better else -1)
        # what is not a number, as of a model that gives one answer to all, is the worst
        return int(np.argmax(np.where(np.isnan(values), -np.inf, values)))

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
                mean = self.ema[name]
                if not tensor.is_floating_point():
                    mean.copy_(tensor)
                elif name in self._learned:
                    mean.lerp_(tensor, 1 - decay)
                else:  # a mask's infinities have no mean
                    mean.copy_(torch.where(mean == tensor, tensor, mean.lerp(tensor, 1 - decay)))

    @cached_property
    def _learned(self) -> set[str]:
        """The names of the parameters."""
        return {name for name, _ in self.module.named_parameters(remove_duplicate=False)}

    def _keep(self) -> str:
        chosen = {"last": None, "best": self.best, "ema": self.ema}[self.config.select]
        if chosen is not None:
            self.module.load_state_dict(chosen)
        if self.config.select == "best":
            return f"epoch {self._best_epoch() + 1}"
        return self.config.select

    def _seconds(self) -> float:
        return self.resumed_s + time.perf_counter() - self.started

    def _save_if_due(self) -> None:
        """Saves the state if it is time to, or if a signal asks for it, which ends the training.

        Several processes do it together, a call later than the one that finds it due.
        """
        stop, due = self.processes.soon([asked(), int(self.save_schedule.due(self.step))])
        if stop or due:
            self._save()
        if stop:
            heard(stop)
            self.processes.wait()  # a process that leaves early resets the connections of the others
            raise Interruption(stop)

    def _save(self) -> None:
        full = self.replica.full
        # a sum that other processes have a part in is written as one
        of_epoch = self.processes.sum(torch.stack(self.of_epoch).clone()) if self.of_epoch else None
        state = {
            "model": full(self.module.state_dict()),
            "own": full(self.own.state_dict()),
            "optimizer": full(self.optimizer.state_dict()),
            "schedule": {"last_epoch": self.schedule.last_epoch},
            "best": full(self.best),
            "ema": full(self.ema),
            "callbacks": [callback.state_dict() for callback in self.callbacks],
            "counts": [self.epoch, self.step],
            "of_epoch": of_epoch,
            "noise": self.noise.state() if self.of_epoch else None,
            "unvalidated": self.unvalidated,
            "curves": [self.losses, self.validation],
            "seconds": self._seconds(),
            "processes": [*self.attempts, self.processes.size],
        }
        save_state(self.workdir, state)
        self.save_schedule.saved(self.step)

    def _resume(self) -> None:
        state = load_state(self.workdir)
        if state is None:
            return
        local, now = self.replica.local, self.module.state_dict()
        kernels_here = [{name: group[name] for name in HOW & set(group)} for group in self.optimizer.param_groups]
        self.module.load_state_dict(local(state["model"], now))
        self.own.load_state_dict(local(state["own"], self.own.state_dict()))
        self.optimizer.load_state_dict(self.replica.optimizer_state(self.optimizer, state["optimizer"]))
        for group, kernels in zip(self.optimizer.param_groups, kernels_here, strict=True):
            group.update(kernels)
        self.schedule.load_state_dict(self.schedule.state_dict() | state["schedule"])
        # they go on where the weights are; the state is read to the CPU
        self.best, self.ema = (None if x is None else local(x, now) for x in (state["best"], state["ema"]))
        for callback, saved in zip(self.callbacks, state["callbacks"], strict=True):
            callback.load_state_dict(saved)
        self.replica.buffers.begin_here()
        self.epoch, self.step = state["counts"]
        if state["of_epoch"] is not None:  # the first has the losses of all
            counts = 1 if self.processes.is_first else 0
            self.of_epoch = list((counts * state["of_epoch"]).to(self.device))
        self.noise.resume(state["noise"])
        self.unvalidated = state["unvalidated"]
        self.losses, self.validation = state["curves"]
        self.resumed_s, self.attempts = state["seconds"], state["processes"]
        self.save_schedule.saved(self.step)
        place = f"in epoch {self.epoch + 1}, after step {self.step}" if self.of_epoch else f"after epoch {self.epoch}"
        log.info("%s: goes on %s", self.description, place)


def _copy_state(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def choose_precision(precision: str, device: torch.device) -> str:
    """``auto`` made definite: without bf16 instructions, autocast trains several times slower than fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if {"avx512_bf16", "amx_bf16", "bf16"} & set(cpu()["isa"]) else "fp32"
