"""Which distillation losses help: a ResNet-20 trained from scratch, with each of them and without a teacher.

    python scripts/distill_accuracy.py DATA CHECKPOINT --results FILE [--epochs 30] [--seeds 3] [--arms kd dkd ...]

DATA holds CIFAR-10 as train and test parquet files, CHECKPOINT the weights of the teacher, a ResNet of depth
``--teacher`` in the layout of akamaster/pytorch_resnet_cifar10, which is fine-tuned to the images once. All arms get
the same epochs, batches and learning rates, and the precision that ``auto`` means here, unless its name says another.
The answers on the test split are appended to FILE as they come; the same command goes on where it stopped, in the
middle of a training too, and ends with the table of all arms against plain training.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from optkit.core.records import pack_values, unpack_values
from optkit.core.stage import Context
from optkit.core.statistics import difference_over_seeds
from optkit.core.task import SealedTask
from optkit.core.variant import Variant
from optkit.distill import Distillation
from optkit.models import ResNetCIFAR
from optkit.models.weights import load_weights
from optkit.tasks import HubImages
from optkit.training import Train, Trainer
from optkit.training.checkpoint import load_state, save_state
from scripts.cifar10 import DEVICE, cifar10, correct_on_test
from scripts.results import Results

MOMENTUM = {"momentum": 0.9, "nesterov": True}
PLAIN = "plain"
# weights as in each paper's experiments on CIFAR, besides kd where it is used besides kd there
ARMS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "kd": {"losses": {"kd": 1.0}},
    "kd, 8 recorded views": {"losses": {"kd": 1.0}, "cached_views": 8},
    "kd, fp32": {"losses": {"kd": 1.0}, "precision": "fp32"},
    "dkd": {"losses": {"dkd": 1.0}, "alpha": 0.5},
    "dist": {"losses": {"dist": {"weight": 2.0, "temperature": 1.0}}, "alpha": 0.5},
    "hint": {"losses": {"hint": 1.0}, "alpha": 0.5},
    "attention_transfer": {"losses": {"attention_transfer": 1000.0}, "alpha": 0.5},
    "similarity": {"losses": {"similarity": 3000.0}, "alpha": 0.5},
    "rkd": {"losses": {"rkd": 1.0}, "alpha": 0.5},
    "kd + attention_transfer": {"losses": {"kd": 1.0, "attention_transfer": 1000.0}},
}


def context(task: HubImages, teacher: nn.Module, seed: int, folder: Path) -> Context:
    """What a stage is given, as in a recipe."""
    import copy

    folder.mkdir(parents=True, exist_ok=True)
    variant = Variant("student", None, frozenset({"float"}), {})
    return Context(
        SealedTask(task), variant, lambda: copy.deepcopy(teacher), lambda node: teacher, seed, DEVICE, folder
    )


def taught(args: argparse.Namespace, task: HubImages) -> nn.Module:
    """The teacher, fine-tuned to these images; kept beside the results."""
    model = ResNetCIFAR(args.teacher)
    folder, kept = args.results.parent, args.results.with_suffix(".teacher.pt").name
    if state := load_state(folder, kept):
        model.load_state_dict(state)
        return model.eval()
    load_weights(model, args.checkpoint)
    trainer = Trainer(epochs=args.teacher_epochs, lr=0.05, optimizer_options=MOMENTUM)
    Train(trainer).apply(model, context(task, model, 0, args.results.with_suffix(".work") / "teacher"))
    save_state(folder, model.state_dict(), kept)
    return model.eval()


def table(rows: list[dict[str, Any]]) -> str:
    """Accuracy over seeds, the difference from plain training with its interval, and seconds."""
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    seconds: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        found[row["arm"]].append(unpack_values(row["correct"]))
        seconds[row["arm"]].append(row["seconds"])
    right = {arm: np.stack(seeds) for arm, seeds in found.items()}
    lines = ["| losses | accuracy % (seeds) | minus plain, points | seconds |", "|---|---|---|---:|"]
    for arm, seeds in sorted(right.items(), key=lambda item: -item[1].mean()):
        each = ", ".join(f"{100 * s.mean():.1f}" for s in seeds)
        gain = ""
        if PLAIN in right and arm not in (PLAIN, "teacher"):
            d = difference_over_seeds(seeds, right[PLAIN])
            gain = f"{100 * d.value:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}]"
        lines.append(f"| {arm} | {100 * seeds.mean():.2f} ({each}) | {gain} | {np.mean(seconds[arm]):.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing from the results, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--teacher", type=int, default=56)
    parser.add_argument("--teacher-epochs", type=int, default=3)
    parser.add_argument("--student", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--limit", type=int, help="examples a split, to try the script")
    parser.add_argument("--results", type=Path, required=True)
    args = parser.parse_args()
    named = ("teacher", "teacher_epochs", "student", "epochs", "limit")
    settings = {name: getattr(args, name) for name in named} | {"checkpoint": args.checkpoint.name}
    results = Results(args.results, settings, "distill_accuracy")
    task = cifar10(args.data, args.limit)
    teacher = taught(args, task)
    for seed in range(args.seeds):
        for arm in [*(["teacher"] if seed == 0 else []), *args.arms]:
            if results.has(arm=arm, seed=seed):
                continue
            model, start, steps = teacher, time.perf_counter(), 0.0
            if arm != "teacher":
                torch.manual_seed(seed)
                options = dict(ARMS[arm])
                precision = options.pop("precision", "auto")
                trainer = Trainer(epochs=args.epochs, lr=0.1, optimizer_options=MOMENTUM, precision=precision)
                stage = Train(trainer) if arm == PLAIN else Distillation(trainer=trainer, **options)
                work = args.results.with_suffix(".work") / f"{arm.replace(' ', '_')}-{seed}"
                outcome = stage.apply(ResNetCIFAR(args.student), context(task, teacher, seed, work))
                model, steps = outcome.module, outcome.resumed_s
            seconds = time.perf_counter() - start + steps
            right = correct_on_test(model, task)
            row = {"arm": arm, "seed": seed, "seconds": seconds}
            row |= {"accuracy": float(right.mean()), "correct": pack_values(right)}
            results.add(row)
            print(f"{arm} seed {seed}: {row['accuracy']:.2%} in {seconds:.0f} s", flush=True)
    print(table(results.rows))


if __name__ == "__main__":
    main()
