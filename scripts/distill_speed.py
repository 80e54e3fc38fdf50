"""What a distillation step costs: optkit's against a loop by hand, and recorded logits against a running teacher.

    python scripts/distill_speed.py [--student 20] [--teacher 56] [--rounds 6] [--steps 12] [--threads 2]
                                     [--precision auto|fp32|bf16]

Arms take turns, so that a drifting machine moves them all: a plain PyTorch loop with a KD loss, optkit's stage doing
the same, the same with a compiled teacher, and with recorded logits; in bf16 also the plain loop in PyTorch's default
precision, fp32. Batches of 128 images of 32x32 pixels, the same fused optimizer and layout, and freed memory kept for
all. The first steps of every turn are not counted. The ratios are of medians, with bootstrap intervals over the turns;
the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from optkit.core.allocator import keep_freed_memory
from optkit.core.statistics import ratio_of_medians
from optkit.distill import DistillationObjective
from optkit.distill.objective import run_teacher
from optkit.distill.recorded import RecordedOutputs
from optkit.distill.teachers import compiled
from optkit.distill.terms import read_terms
from optkit.models import ResNetCIFAR
from optkit.tasks import Digits
from optkit.training import Callback, Trainer
from optkit.training.trainer import choose_precision

CPU = torch.device("cpu")
BATCH, SKIPPED, TEMPERATURE, ALPHA = 128, 2, 4.0, 0.9


class Clock(Callback):
    """Notes when every step ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, module: nn.Module, step: int, total: int) -> None:
        self.times.append(time.perf_counter())


def model(depth: int, seed: int) -> nn.Module:
    """A ResNet for grey images, its layout that of the trainer."""
    torch.manual_seed(seed)
    return ResNetCIFAR(depth, 10, 1).to(memory_format=torch.channels_last)


def by_hand(task: Digits, student: nn.Module, teacher: nn.Module, steps: int, bf16: bool) -> list[float]:
    """The loop that a user would write; returns when every step ended."""
    student.train()
    optimizer = torch.optim.SGD(
        student.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps + 1)
    times: list[float] = []
    epoch = 0
    while len(times) < steps:
        for batch in task.batches("train", BATCH, training=True, seed=epoch):
            if len(times) == steps:
                break
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                with torch.no_grad():
                    target = teacher(*batch.inputs).float()
                logits = student(*batch.inputs).float()
            log_student, log_teacher = (F.log_softmax(x / TEMPERATURE, -1) for x in (logits, target))
            kd = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * TEMPERATURE**2
            loss = ALPHA * kd + (1 - ALPHA) * F.cross_entropy(logits, batch.targets)
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            times.append(time.perf_counter())
        epoch += 1
    return times


def by_optkit(
    task: Digits, student: nn.Module, teacher: nn.Module, steps: int, precision: str,
    recorded: RecordedOutputs | None = None, run: nn.Module | None = None,
) -> list[float]:  # fmt: skip
    """The same through optkit's objective and loop; returns when every step ended."""
    options = {"momentum": 0.9, "nesterov": True}
    trainer = Trainer(epochs=1000, batch_size=BATCH, lr=0.01, optimizer_options=options, precision=precision)
    clock = Clock()
    terms = read_terms({"kd": 1.0}, None, TEMPERATURE)
    with (
        tempfile.TemporaryDirectory() as folder,
        DistillationObjective(task, student, teacher, terms, alpha=ALPHA, recorded=recorded, run=run) as objective,
    ):
        trainer.fit(
            student, task, objective, seed=0, workdir=Path(folder), device=CPU, callbacks=[clock], max_steps=steps
        )
    return clock.times


def main() -> None:
    """Read the command line, then time the arms."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", type=int, default=20)
    parser.add_argument("--teacher", type=int, default=56)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=12, help="a turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["OPTKIT_CACHE"] = cache  # logits are recorded now, not read from an earlier run
        compare(args)


def compare(args: argparse.Namespace) -> None:
    """Times the arms, and prints their ratios."""
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    task = Digits(image_size=32, crop=4, limit=8 * BATCH)  # whole batches only, which take the same time
    precision = choose_precision(args.precision, CPU)
    bf16 = precision == "bf16"
    teacher = model(args.teacher, 1).eval().requires_grad_(False)

    def run(batch):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return run_teacher(task, teacher, batch)

    faster = compiled(teacher)
    started = time.perf_counter()
    by_optkit(task, model(args.student, 0), teacher, 20, precision, run=faster)
    compiling = time.perf_counter() - started
    recorded = RecordedOutputs(task, teacher, 1, BATCH, 0, run, precision)
    started = time.perf_counter()
    recorded.begin(0)
    recording = time.perf_counter() - started
    seconds: dict[str, list[np.ndarray]] = defaultdict(list)
    arms: dict[str, tuple] = {
        "by hand": (by_hand, bf16),
        "optkit": (by_optkit, precision),
        "optkit, compiled": (by_optkit, precision, None, faster),
        "optkit, recorded": (by_optkit, precision, recorded),
    }
    if bf16:
        arms["by hand, fp32"] = (by_hand, False)
    for turn in range(args.rounds):
        first = turn % len(arms)
        for name in list(arms)[first:] + list(arms)[:first]:
            loop, *options = arms[name]
            ends = loop(task, model(args.student, 0), teacher, args.steps, *options)
            seconds[name].append(np.diff(ends)[SKIPPED:])
    times = {name: np.stack(turns) for name, turns in seconds.items()}
    for name, series in times.items():
        print(f"{name:18} {1000 * np.median(series):8.1f} ms a step, {1 / np.median(series):5.2f} steps/s")
    cost = ratio_of_medians(times["optkit"], times["by hand"])
    gain, faster_by = (ratio_of_medians(times["optkit"], times[f"optkit, {how}"]) for how in ("recorded", "compiled"))
    print(f"optkit / by hand: {cost.value:.3f} [{cost.low:.3f}, {cost.high:.3f}]")
    print(f"running teacher / recorded: {gain.value:.2f} [{gain.low:.2f}, {gain.high:.2f}]")
    print(f"running teacher / compiled: {faster_by.value:.2f} [{faster_by.low:.2f}, {faster_by.high:.2f}]")
    plain = ratio_of_medians(times["by hand, fp32"], times["optkit, recorded"]) if bf16 else None
    if plain:
        print(f"by hand in fp32 / recorded: {plain.value:.2f} [{plain.low:.2f}, {plain.high:.2f}]")
    result = {
        "student": args.student, "teacher": args.teacher, "batch": BATCH, "threads": args.threads,
        "precision": precision, "steps_per_arm": int(times["optkit"].size),
        "step_ms": {name: round(1000 * float(np.median(series)), 2) for name, series in times.items()},
        "cost": [cost.value, cost.ci], "gain": [gain.value, gain.ci],
        "compiled": [faster_by.value, faster_by.ci],
        "by_hand_fp32": [plain.value, plain.ci] if plain else None, "compiling_s": round(compiling, 1),
        "recording_s": round(recording, 2), "recorded_mb": task.size("train") * 10 * 4 / 1e6,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
