"""Trainings that one process and two must end alike; run as a script, it is one of two, and saves what came out.

torchrun --nproc-per-node 2 -m tests.training.several FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from optkit.core.processes import current, joined
from optkit.core.task import SealedTask
from optkit.distill import DistillationObjective
from optkit.distill.recorded import RecordedOutputs, run_teacher
from optkit.distill.terms import read_terms
from optkit.models import MLP
from optkit.prune.gradual import GradualMasks
from optkit.prune.masks import magnitude_masks
from optkit.quantize.qat.freezing import Freezing
from optkit.quantize.qat.graph import prepare_qat
from optkit.tasks import Digits
from optkit.training import Callback, TaskLoss, Trainer
from tests.contracts.kinds import TinyNet

DIGITS = Digits(image_size=8, crop=1, limit=131)
# 131 examples in batches of 26: the last batch has one, which leaves a process of two without any
PLAIN = Trainer(
    epochs=2, batch_size=26, precision="fp32", channels_last=False, lr=0.05, weight_decay=0.01,
    optimizer_options={"momentum": 0.9},
)  # fmt: skip
ADAMW = replace(PLAIN, optimizer="adamw", optimizer_options={}, lr=0.003)


class Stop(Callback):
    """Ends a training as a kill does, after a step."""

    works_on_shards = True

    def __init__(self, step: float):
        self.step = step

    def on_step_end(self, module: nn.Module, step: int, total: int) -> None:
        if step == self.step:
            raise KeyboardInterrupt


class Seen:
    """The task's loss, and the examples that it is asked for."""

    def __init__(self) -> None:
        self.loss, self.places = TaskLoss(DIGITS), []

    def __call__(self, module: nn.Module, batch: Any) -> Tensor:
        self.places += batch.index.tolist()
        return self.loss(module, batch)


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return MLP(input_shape=[1, 8, 8], widths=[32]).eval()


def transformer(norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    net = TinyNet("classes", outputs=10)
    if not norm:
        net.stem[1] = nn.Identity()
    return net.eval()


def fit(trainer: Trainer, module: nn.Module, folder: Path, objective: Any = None, **options: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    objective = objective or TaskLoss(DIGITS)
    return trainer.fit(module, DIGITS, objective, seed=3, workdir=folder, device=torch.device("cpu"), **options)


def stopped(trainer: Trainer, module: nn.Module, folder: Path, step: int) -> None:
    """A training that is killed after a step, and leaves its last state in the folder."""
    try:
        fit(trainer, module, folder, callbacks=[Stop(step)])
    except KeyboardInterrupt:
        return
    raise AssertionError("the training was not stopped")


def distilled(folder: Path) -> tuple[nn.Module, Any]:
    """A student whose features are compared with a wider teacher's, by projections that are trained."""
    torch.manual_seed(1)
    teacher, student = MLP(input_shape=[1, 8, 8], widths=[48]).eval(), mlp()
    terms = read_terms({"kd": 1.0, "hint": {"weight": 0.5, "pairs": {"layers.1": "layers.1"}}}, None, 4.0)
    with DistillationObjective(SealedTask(DIGITS), student, teacher, terms, alpha=0.9, seed=3) as objective:
        return student, fit(PLAIN, student, folder, objective)


def quantized(folder: Path, trainer: Trainer = PLAIN) -> tuple[nn.Module, Any]:
    example = DIGITS.example(2)
    prepared = prepare_qat(mlp(), example, [DIGITS.example(64)])
    return prepared.module, fit(trainer, prepared.module, folder, callbacks=[Freezing(0.5, 0.5)])


def pruned(folder: Path) -> tuple[nn.Module, Any]:
    module = mlp()
    grown = GradualMasks(lambda m, share: magnitude_masks(m, share), 0.5, end=0.5, every=2)
    return module, fit(PLAIN, module, folder, callbacks=[grown])


def trained(trainer: Trainer, make: Callable[[], nn.Module] = mlp) -> Callable[[Path], tuple[nn.Module, Any]]:
    def run(folder: Path) -> tuple[nn.Module, Any]:
        module = make()
        return module, fit(trainer, module, folder, callbacks=[Stop(-1)])

    return run


# one process and two must end alike in these
ALIKE: dict[str, Callable[[Path], tuple[nn.Module, Any]]] = {
    "plain": trained(PLAIN),
    "accumulated": trained(replace(PLAIN, micro_batch_size=4)),
    "best": trained(replace(ADAMW, select="best", patience=3, grad_clip=0.5)),
    "ema": trained(replace(PLAIN, select="ema")),
    "distilled": distilled,
    "pruned": pruned,
    "sharded": trained(replace(PLAIN, sharding="fsdp", grad_clip=1.0), transformer),
    "sharded, accumulated": trained(replace(PLAIN, sharding="fsdp", micro_batch_size=5, select="ema"), transformer),
    "sharded, best": trained(replace(PLAIN, sharding="fsdp", select="best"), transformer),
}
# two processes hold parts of what they look at, such as a batch's statistics
OF_TWO: dict[str, Callable[[Path], tuple[nn.Module, Any]]] = {
    "quantized": quantized,
    "quantized, sharded": lambda folder: quantized(folder, replace(PLAIN, sharding="fsdp")),
    "norms": trained(PLAIN, lambda: transformer(norm=True)),
    "norms, sharded": trained(replace(PLAIN, sharding="fsdp"), lambda: transformer(norm=True)),
}
EVERY_STEP = replace(PLAIN, checkpoint_steps=1, select="ema")
# stopped in the middle of the second epoch by one number of processes, ended by another
MOVED = {"moved": (EVERY_STEP, mlp), "moved, sharded": (replace(EVERY_STEP, sharding="fsdp"), transformer)}


def _report(module: nn.Module, report: Any, folder: Path, name: str) -> None:
    assert not any(type(p) is not nn.Parameter for p in module.parameters())
    save_file(module.state_dict(), folder / f"{name} {current().rank}.safetensors")
    facts = report.facts()["training"]
    (folder / f"{name} {current().rank}.json").write_text(json.dumps(facts))


def recorded(folder: Path, top: int | None) -> tuple[dict[str, Tensor], list[int]]:
    """What is kept of a teacher's outputs, all or the largest only, and how many examples the teacher saw at a time."""
    os.environ["OPTKIT_CACHE"] = str(folder / "cache")
    teacher, seen = mlp(), list[int]()

    def run(batch: Any) -> Tensor:
        seen.append(len(batch))
        return run_teacher(DIGITS, teacher, batch)

    outputs = RecordedOutputs(DIGITS, teacher, 1, 26, 0, run, "fp32", None if top is None else (top, 2.0))
    outputs.begin(0)
    return outputs._kept, seen


def main(folder: Path) -> None:
    from tests.training.statistics_of_data import FOUND

    torch.set_num_threads(1)
    for name, find in FOUND.items():
        save_file(find(), folder / f"{name} {current().rank}.safetensors")
    # what the first does alone, others take no part in
    (folder / f"alone {current().rank}.json").write_text(json.dumps(current().first(lambda: current().size)))
    for top in (None, 3):
        outputs, counts = recorded(folder, top)
        save_file(outputs, folder / f"recorded {top} {current().rank}.safetensors")
        (folder / f"recorded {top} {current().rank}.json").write_text(json.dumps(counts))
    for name, run in (ALIKE | OF_TWO).items():
        _report(*run(folder / name), folder, name)
    seen = Seen()
    fit(replace(PLAIN, epochs=1), mlp(), folder / "seen", seen)
    (folder / f"seen {current().rank}.json").write_text(json.dumps(seen.places))
    for name, (trainer, make) in MOVED.items():
        stopped(trainer, make(), folder / f"{name}, from two", 9)
        current().wait()
        module = make()
        _report(
            module, fit(trainer, module, folder / f"{name}, from one", callbacks=[Stop(-1)]), folder, f"{name}, to two"
        )


if __name__ == "__main__":
    with joined():
        main(Path(sys.argv[1]))
