"""Pruning in steps: the amount is reached a part at a time, with training after each."""

from __future__ import annotations

import copy
import logging
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from optkit.core.checks import check_count, is_number
from optkit.core.errors import UserError
from optkit.core.processes import alone, current
from optkit.core.seeds import derive_seed
from optkit.core.stage import Context, Outcome
from optkit.core.task import Batch, Task, rows_at_once
from optkit.training import Training, check_training, split_of

if TYPE_CHECKING:
    from torch import Tensor, nn

log = logging.getLogger(__name__)
Facts = dict[str, Any]
PROGRESS = "steps.pt"
BATCH = 64


def geometric_amounts(amount: float, steps: int) -> list[float]:
    """Shares removed after each step, so that every step takes the same share of what is left to it."""
    return [*(1 - (1 - amount) ** (step / steps) for step in range(1, steps)), amount]


def size_of(module: nn.Module, example: tuple[Tensor, ...]) -> dict[str, int]:
    """Parameters, and MACs an example."""
    from optkit.core.macs import count_macs

    params = sum(p.numel() for p in module.parameters())
    return {"params": params, "macs": count_macs(module, example) // len(example[0])}


def examples_of(task: Task, count: int, seed: int) -> Iterator[Batch]:
    """So many examples of train, drawn under a seed, in batches that fit into memory; one for each process at least."""
    import torch

    left, rows = count, min(rows_at_once(task, BATCH), max(1, count // current().size))
    for batch in task.batches("train", rows, seed=derive_seed(seed, "examples")):
        yield batch if len(batch) <= left else batch.subset(torch.arange(left))
        left -= len(batch)
        if left <= 0:
            return


@dataclass(frozen=True, kw_only=True)
class SteppedPruning:
    """What a pruning stage needs to prune at once, iteratively, or a little at a time.

    Many steps with a short training between them are gradual pruning; few with a whole one each are iterative (Han et
    al., 2015). The training is any training stage, a distilling one included.

    Attributes:
        steps: in how many steps the amount is reached; each removes the same share of what is left.
        training: the training stage that follows each step; None for one step and no training.
        between: how much of that training follows a step that is not the last, as a share of its steps.
    """

    steps: int = 1
    training: Training | None = None
    between: float = 1.0

    adds: ClassVar[frozenset[str]]

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        if not is_number(self.between) or not 0 < self.between <= 1:
            message = f"{self.between!r} is not a share above 0 and up to 1"
            raise UserError(message, key="between", value=self.between, fix="0.5 is half of the training")
        if self.training is not None:
            check_training("training", self.training)
        elif self.steps > 1:
            fix = "+stage@stages.NAME.training=train, or distill/logits"
            raise UserError(f"missing; {self.steps} steps need a training stage between them", key="training", fix=fix)

    @property
    def in_all_processes(self) -> bool:
        """Whether several processes share out the data that a step reads; else the first does all of it."""
        return False

    def one_step(self, module: nn.Module, ctx: Context, amount: float, earlier: Sequence[Facts]) -> Outcome:
        """Prunes until ``amount`` of the model before the first step is gone; ``earlier`` are that steps' facts."""
        raise NotImplementedError

    def in_steps(self, module: nn.Module, ctx: Context, amount: float) -> Outcome:
        """Prunes a stage's module to ``amount``. Called again after a kill, it does nothing again that was finished.

        A cut counts as finished before its training begins: a second one, by other timings, may be another.
        """
        from optkit.training.checkpoint import load_state, save_state

        if self.training is None:
            return self.one_step(module, ctx, amount, [])
        started, processes = time.perf_counter(), current()
        dense = copy.deepcopy(module) if processes.several else module
        state = load_state(ctx.workdir, PROGRESS) or {"facts": [], "surgeries": [], "pruned": None, "seconds": 0.0}
        facts, surgeries, pruned, resumed_s = state["facts"], state["surgeries"], state["pruned"], state["seconds"]

        def save() -> None:
            state = {"model": module.state_dict(), "facts": facts, "surgeries": surgeries, "pruned": pruned}
            save_state(ctx.workdir, state | {"seconds": resumed_s + time.perf_counter() - started}, PROGRESS)

        if surgeries:
            module = self._replayed(module, state, ctx)
            log.info("pruning goes on after step %d of %d", len(facts), self.steps)
        for number, share in enumerate(geometric_amounts(amount, self.steps), 1):
            if number <= len(facts):
                continue
            if pruned is None:
                if processes.is_first or self.in_all_processes:
                    with nullcontext() if self.in_all_processes else alone():
                        step = self.one_step(module, _at_step(ctx, number), share, facts)
                if processes.is_first:
                    module, pruned = step.module, step.facts
                    surgeries.append(step.surgery)
                    save()
                log.info("pruning step %d of %d: %.1f%% removed", number, self.steps, 100 * share)
            if processes.several:  # by what the first has pruned: timings of others would choose other channels
                processes.wait()
                state = load_state(ctx.workdir, PROGRESS) or {}
                surgeries, pruned = state["surgeries"], state["pruned"]
                module = self._replayed(copy.deepcopy(dense), state, ctx)
            trained = self.training.apply(module, self._training_context(ctx, number))
            module, resumed_s = trained.module, resumed_s + trained.resumed_s
            facts.append(pruned | trained.facts)
            pruned = None
            save()
            processes.wait()
            if processes.is_first:
                shutil.rmtree(_folder(ctx, number))
        surgery = {"steps": surgeries} if any(surgeries) else None
        return Outcome(module, facts[-1] | {"steps": facts}, surgery, resumed_s)

    def _replayed(self, dense: nn.Module, state: Facts, ctx: Context) -> nn.Module:
        """The module of a saved state, from the one that the stage was given."""
        module = self.replay(dense, {"steps": state["surgeries"]}, ctx.task.example(2))
        module.load_state_dict(state["model"])
        return module

    @staticmethod
    def replay(module: nn.Module, surgery: dict[str, Any], example: tuple[Tensor, ...]) -> nn.Module:
        """The structure after these steps; the same, unless the stage cuts."""
        return module

    def _training_context(self, ctx: Context, number: int) -> Context:
        """What the training after a step sees: the pruned variant, a seed and folder of its own, maybe fewer steps."""
        assert self.training is not None
        limit = ctx.max_steps
        if number < self.steps and self.between < 1:
            trainer = self.training.trainer
            whole = trainer.epochs * math.ceil(ctx.task.size(split_of(self.training)) / trainer.batch_size)
            limit = min(math.ceil(self.between * whole), limit or whole)
        folder = _folder(ctx, number)
        folder.mkdir(parents=True, exist_ok=True)
        variant = replace(ctx.variant, traits=ctx.variant.traits | self.adds)
        seed = derive_seed(ctx.seed, "training", number)
        return replace(ctx, variant=variant, seed=seed, workdir=folder, max_steps=limit)


def _at_step(ctx: Context, number: int) -> Context:
    """What a step sees: a seed of its own."""
    return replace(ctx, seed=derive_seed(ctx.seed, "step", number))


def _folder(ctx: Context, number: int) -> Path:
    return ctx.workdir / f"step-{number}"
