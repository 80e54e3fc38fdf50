"""optkit's trainer beside a bare loop of PyTorch, and beside the loop that accelerate documents, on the same steps.

    python -m scripts.training_bench [--cases images tokens] [--rounds 12] [--steps 12] [--clock wall] [--threads 2]
        [--results FILE]

A case is the training stage of a recipe: ``images`` of quickstart (a ResNet on digits), ``tokens`` of quickstart_lm (a
small Llama on documentation). All three loops get the same model, batches, optimizer, schedule and precision. Each
round calls them in an order of its own, each for some steps with a fresh copy of the model. A step is timed from the
end of the one before it, so the making of a batch counts; the first steps of each call do not. ``over_bare`` and
``over_accelerate`` are our median time of a step over theirs, taken in each round, with the 95% interval over rounds
(below 1: ours is faster). ``weights_differ`` is the largest difference of a weight from the bare loop's after one call:
0, or of the size of a rounding, if the steps are the same. ``busy`` is the share of the machine's processor time that
others took meanwhile; above 0.1 times by the wall are not to be trusted. ``--clock cpu`` counts the processor time of
this process alone, which other work moves little; with ``--threads 1`` it is the time of a step on a quiet machine. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset

from optkit.core.allocator import keep_freed_memory
from optkit.core.environment import environment
from optkit.core.seeds import derive_seed
from optkit.core.statistics import ratio_of_medians
from optkit.core.task import NO_LABEL, TOKENS, Task
from optkit.core.threads import use_threads
from optkit.training import Callback, TaskLoss, Trainer
from optkit.training.schedules import build_optimizer, build_schedule
from optkit.training.trainer import choose_precision
from scripts.generation_bench import BUSY, others_share
from scripts.results import Results, machine

RECIPES = {"images": "quickstart", "tokens": "quickstart_lm"}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
WARM_UP = 2
SEED = 0
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """What is trained, and how.

    Attributes:
        model: as it starts.
        steps: of each call.
        precision: ``fp32`` or ``bf16``.
        now: gives seconds.
    """

    name: str
    model: nn.Module
    task: Task
    trainer: Trainer
    steps: int
    precision: str
    now: Callable[[], float]

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets of the steps, in the trainer's own order."""
        seed = derive_seed(SEED, "order", 0)
        batches = self.task.batches("train", self.trainer.batch_size, training=True, seed=seed)
        torch.manual_seed(derive_seed(SEED, "noise", 0))
        return ((batch.inputs[0], batch.targets) for batch, _ in zip(batches, range(self.steps), strict=False))

    def prepared(self) -> tuple[nn.Module, torch.optim.Optimizer, LambdaLR]:
        """A fresh copy of the model in the trainer's memory format, its optimizer and its schedule."""
        own = self.trainer
        model = copy.deepcopy(self.model).train()
        if own.channels_last and self.task.output_kind != TOKENS:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = build_optimizer(model.parameters(), own.optimizer, own.lr, own.weight_decay, own.optimizer_options)
        return model, optimizer, build_schedule(optimizer, own.schedule, own.warmup, self.steps)

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        if self.task.output_kind == TOKENS:  # each token is predicted from those before it
            output, targets = output[:, :-1], targets[:, 1:]
        return F.cross_entropy(output.flatten(0, -2), targets.flatten(), ignore_index=NO_LABEL)


class Clock(Callback):
    """Notes when each step ends."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now, self.ends = now, []

    def on_step_end(self, module: nn.Module, step: int, total: int) -> None:
        self.ends.append(self.now())


Loop = Callable[[Case], tuple[list[float], nn.Module]]


def ours(case: Case) -> tuple[list[float], nn.Module]:
    """`Trainer.fit`, which ends after an epoch or `steps`."""
    clock, model = Clock(case.now), copy.deepcopy(case.model)
    with tempfile.TemporaryDirectory() as workdir:
        case.trainer.fit(
            model, case.task, TaskLoss(case.task), seed=SEED, workdir=Path(workdir), device=CPU, callbacks=[clock],
            max_steps=case.steps,
        )  # fmt: skip
    return clock.ends, model


def bare(case: Case) -> tuple[list[float], nn.Module]:
    """The same steps, written by hand."""
    model, optimizer, schedule = case.prepared()
    ends = []
    for inputs, targets in case.batches():
        with torch.autocast("cpu", torch.bfloat16, enabled=case.precision == "bf16"):
            output = model(inputs)
        loss = case.loss(output.float(), targets)
        loss.backward()
        if case.trainer.grad_clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), case.trainer.grad_clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        ends.append(case.now())
    return ends, model


class Batches(IterableDataset):
    """A case's batches, each as one item, for a loader that makes no batches of its own."""

    def __init__(self, case: Case):
        self.case = case

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.case.batches()


def of_accelerate(case: Case) -> tuple[list[float], nn.Module]:
    """The loop of accelerate's documentation."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if case.precision == "bf16" else "no")
    model, optimizer, schedule = case.prepared()
    loader = DataLoader(Batches(case), batch_size=None)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    ends = []
    for inputs, targets in loader:
        optimizer.zero_grad()
        output = model(inputs)
        loss = case.loss(output, targets)
        accelerator.backward(loss)
        if case.trainer.grad_clip is not None:
            accelerator.clip_grad_norm_(model.parameters(), case.trainer.grad_clip)
        optimizer.step()
        schedule.step()
        ends.append(case.now())
    return ends, accelerator.unwrap_model(model)


LOOPS: dict[str, Loop] = {"optkit": ours, "bare": bare, "accelerate": of_accelerate}


def build(name: str, steps: int, clock: str) -> Case:
    """The training of a case's recipe, for some steps of one epoch."""
    from optkit.launch import launch
    from optkit.models import ModelSpec
    from optkit.recipe.compose import to_recipe

    found: list[Any] = []
    launch(RECIPES[name], ["~engines.inductor"] if name == "images" else [], lambda cfg: found.append(to_recipe(cfg)))
    (recipe,) = found
    spec = ModelSpec.from_config(recipe.model, recipe.task.model_defaults())
    trainer = replace(recipe.stages["train"].trainer, epochs=1)
    return Case(
        name, spec.build(SEED), recipe.task, trainer, steps, choose_precision(trainer.precision, CPU), CLOCKS[clock]
    )


def bench(case: Case, clock: str, rounds: int) -> dict[str, Any]:
    """One case."""
    times: dict[str, list[list[float]]] = {name: [] for name in LOOPS}
    models = {name: loop(case)[1] for name, loop in LOOPS.items()}  # also warms every loop up
    before, mine = psutil.cpu_times(), psutil.Process().cpu_times()
    order, shuffled = list(LOOPS), random.Random(SEED)
    for _ in range(rounds):
        shuffled.shuffle(order)
        for name in order:
            ends, _ = LOOPS[name](case)
            times[name].append(np.diff(ends)[WARM_UP:].tolist())
    busy = others_share(before, mine)
    samples = {name: np.array(found) for name, found in times.items()}
    inputs, _ = next(case.batches())
    count, unit = (inputs.numel(), "tokens") if case.task.output_kind == TOKENS else (len(inputs), "images")
    found: dict[str, Any] = {
        "case": case.name, "clock": clock, "precision": case.precision, "batch_size": case.trainer.batch_size,
        "busy": round(busy, 3), "quiet": busy <= BUSY,
    }  # fmt: skip
    found[f"{unit}_a_second"] = {name: round(count / float(np.median(own)), 1) for name, own in samples.items()}
    found["ms_a_step"] = {name: round(float(np.median(own)) * 1e3, 3) for name, own in samples.items()}
    for other in ("bare", "accelerate"):
        ratio = ratio_of_medians(samples["optkit"], samples[other])
        found[f"over_{other}"] = {"value": round(ratio.value, 4), "ci": ratio.ci and [round(x, 4) for x in ratio.ci]}
    found["weights_differ"] = {name: difference(models[name], models["bare"]) for name in ("optkit", "accelerate")}
    return found


def difference(model: nn.Module, other: nn.Module) -> float:
    """The largest difference of a weight."""
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return max(float((one - two).detach().abs().max()) for one, two in pairs)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """What each loop trains in a second, and our time of a step over the others'."""
    lines = [
        "| case | precision | optkit | bare loop | accelerate | step over bare loop's | over accelerate's |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        speeds = row[f"{row['case']}_a_second"]
        cells = [f"{row['case']} a second", row["precision"]]
        cells += [f"{speeds[name]:,.0f}" if row["quiet"] else "left out" for name in ("optkit", "bare", "accelerate")]
        for name in ("over_bare", "over_accelerate"):
            (low, high), value = row[name]["ci"], row[name]["value"]
            cells.append(f"{value:.3f} [{low:.3f}, {high:.3f}]" if row["quiet"] else "left out: busy")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Below 1, optkit is faster; 95% intervals. {rows[0]['machine']}"])


def main() -> None:
    """Prints a line for each case, and all of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=12, help="of each call; all but the first few are timed")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: what this process alone used")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--results", type=Path, help="a file that keeps the rows for the documents")
    args = parser.parse_args()
    keep_freed_memory()
    kept = Results(args.results, {"rounds": args.rounds, "steps": args.steps, "clock": args.clock}, "training_bench")
    said = machine(environment(args.threads, ()))
    with use_threads(args.threads):
        for name in args.cases:
            row = bench(build(name, args.steps, args.clock), args.clock, args.rounds)
            kept.add(row | {"machine": said})
            print(row, flush=True)
    print(json.dumps(kept.rows))


if __name__ == "__main__":
    main()
