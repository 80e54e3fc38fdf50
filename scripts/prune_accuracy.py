"""Accuracy after a cut and a short fine-tune: every criterion against random channels, and against Torch-Pruning.

    python scripts/prune_accuracy.py DATA CHECKPOINT --results FILE [--depth 20] [--seeds 3] [--arms l1 ...]

DATA holds CIFAR-10 as train and test parquet files, CHECKPOINT the weights of a ResNet of that depth in the layout of
akamaster/pytorch_resnet_cifar10. The checkpoint is fine-tuned to the images once (``--dense-steps``). Then every arm
removes half of the MACs and gets the same fine-tuning: steps, batches, learning rates. The answers on the test split
are appended to FILE as they come; the same command goes on where it stopped, and ends with the table. Torch-Pruning is
an arm if it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections import defaultdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from optkit.core.records import pack_values, unpack_values
from optkit.core.statistics import difference_over_seeds
from optkit.models import ResNetCIFAR
from optkit.models.weights import load_weights
from optkit.prune import prune_structured
from optkit.prune.options import CRITERIA
from optkit.tasks import HubImages
from optkit.training import TaskLoss, Trainer
from optkit.training.checkpoint import load_state, save_state
from scripts.cifar10 import DEVICE, cifar10, correct_on_test
from scripts.results import Results

AMOUNT = 0.5
BATCHES = 16


def fit(model: nn.Module, task: HubImages, steps: int, lr: float, seed: int) -> None:
    """Train for so many steps of 128, one cycle."""
    trainer = Trainer(epochs=100, lr=lr, optimizer_options={"momentum": 0.9})
    with tempfile.TemporaryDirectory() as folder:
        trainer.fit(model, task, TaskLoss(task), seed=seed, workdir=Path(folder), device=DEVICE, max_steps=steps)


def macs(model: nn.Module) -> int:
    """Multiply-accumulates for one image."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32))
    return counter.get_total_flops() // 2


def cut(arm: str, model: nn.Module, task: HubImages, seed: int) -> nn.Module:
    """Half of the MACs removed in the way the arm is named after."""
    if arm.startswith("torch_pruning"):
        return cut_by_torch_pruning(model)
    batches = list(islice(task.batches("train", 64, training=True, seed=seed), BATCHES))
    loss = lambda m, b: F.cross_entropy(m(*b.inputs), b.targets)  # noqa: E731
    return prune_structured(
        model, task.example(2), amount=AMOUNT, budget="macs", criterion=arm, batches=batches, loss_fn=loss, seed=seed
    ).module


def cut_by_torch_pruning(model: nn.Module) -> nn.Module:
    """Torch-Pruning's group L2 norm, global ranking; the ratio that leaves half of the MACs is found by bisection.

    Only channels inside the blocks are cut: with the shortcuts that pad channels, what Torch-Pruning 1.6.1 cuts of the
    residual stream no longer runs.
    """
    import copy

    import torch_pruning as tp

    def attempt(ratio: float) -> nn.Module:
        candidate = copy.deepcopy(model).eval()
        stream = [m for name, m in candidate.named_modules() if name == "conv1" or name.endswith(".conv2")]
        tp.pruner.BasePruner(
            candidate,
            torch.zeros(1, 3, 32, 32),
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            global_pruning=True,
            pruning_ratio=ratio,
            ignored_layers=[*stream, candidate.linear],
        ).step()
        return candidate

    target, low, high = (1 - AMOUNT) * macs(model), 0.0, 0.95
    best = model
    for _ in range(12):
        middle = (low + high) / 2
        candidate = attempt(middle)
        found = macs(candidate)
        best = min((best, candidate), key=lambda m: abs(macs(m) - target))
        low, high = (middle, high) if found > target else (low, middle)
    return best


def dense(args: argparse.Namespace, task: HubImages) -> nn.Module:
    """The checkpoint, fine-tuned to these images; kept beside the results."""
    model = ResNetCIFAR(args.depth)
    folder, kept = args.results.parent, args.results.with_suffix(".dense.pt").name
    if state := load_state(folder, kept):
        model.load_state_dict(state)
        return model.eval()
    load_weights(model, args.checkpoint)
    fit(model, task, args.dense_steps, 0.05, seed=0)
    save_state(folder, model.state_dict(), kept)
    return model.eval()


def table(rows: list[dict[str, Any]]) -> str:
    """Accuracy over seeds, and the differences from random and from Torch-Pruning with their intervals."""
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    costs: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        found[row["arm"]].append(unpack_values(row["correct"]))
        costs[row["arm"]].append(row["macs"])
    right = {arm: np.stack(seeds) for arm, seeds in found.items()}
    others = [arm for arm in ("random", "torch_pruning") if arm in right]
    lines = ["| cut | MACs | accuracy % (seeds) | " + " | ".join(f"minus {arm}, points" for arm in others) + " |"]
    lines.append("|---|---:|---|" + "---|" * len(others))
    for arm, seeds in sorted(right.items(), key=lambda item: -item[1].mean()):
        each = ", ".join(f"{100 * s.mean():.1f}" for s in seeds)
        cells = [arm, f"{np.mean(costs[arm]) / np.mean(costs['dense']):.3f}", f"{100 * seeds.mean():.2f} ({each})"]
        for other in others:
            if other == arm:
                cells.append("")
                continue
            d = difference_over_seeds(seeds, right[other])
            cells.append(f"{100 * d.value:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}]")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing from the results, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500, help="of 128 images, after the cut")
    parser.add_argument("--dense-steps", type=int, default=1000, help="of 128 images, before it")
    parser.add_argument("--arms", nargs="+")
    parser.add_argument("--results", type=Path, required=True)
    args = parser.parse_args()
    installed = importlib.util.find_spec("torch_pruning") is not None
    arms = args.arms or [*(["torch_pruning"] if installed else []), *CRITERIA]
    task = cifar10(args.data)
    settings = {"depth": args.depth, "steps": args.steps, "dense_steps": args.dense_steps}
    results = Results(args.results, settings | {"checkpoint": args.checkpoint.name}, "prune_accuracy")
    for seed in range(args.seeds):
        for arm in [*(["dense"] if seed == 0 else []), *arms]:
            if results.has(arm=arm, seed=seed):
                continue
            start = time.perf_counter()
            model = dense(args, task)
            if arm != "dense":
                model = cut(arm, model, task, seed)
                fit(model, task, args.steps, 0.05, seed)
            right = correct_on_test(model, task)
            row = {"arm": arm, "seed": seed, "macs": macs(model), "seconds": time.perf_counter() - start}
            row |= {"accuracy": float(right.mean()), "correct": pack_values(right)}
            results.add(row)
            print(f"{arm} seed {seed}: {row['accuracy']:.2%}, {row['macs'] / 1e6:.1f}M MACs", flush=True)
    print(table(results.rows))


if __name__ == "__main__":
    main()
