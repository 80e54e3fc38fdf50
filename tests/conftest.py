"""What all tests share: no network, caches and locks of their own, two small real data sets."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from optkit.cli import cli
from optkit.core.cache import write_json
from optkit.core.logs import LOGGER
from optkit.core.records import ACCURACY, Cost, Measurement, Record, pack_values
from optkit.core.stage import Context
from optkit.core.task import SealedTask
from optkit.core.variant import Variant
from optkit.measure.peaks import peaks_file
from optkit.models import MLP
from optkit.tasks import Digits


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    os.environ["OPTKIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["OPTKIT_LOCKS"] = str(tmp_path_factory.mktemp("locks"))
    torch.set_num_threads(1)
    for threads in (1, 2):  # measuring them takes seconds of the first run in every cache
        write_json(
            peaks_file(threads),
            {"fp32": 100.0, "int8": 400.0, "memory_gb_s": 20.0, "read_gb_s": 20.0},
            key="OPTKIT_CACHE",
        )


@pytest.fixture(autouse=True)
def no_rule_fails():
    """A rule of pruning that raises is a bug, though a user's model only stays whole; a test may clear the list."""
    told: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: told.append(record.getMessage())
    rules = logging.getLogger("optkit.prune.trace.rules.dispatch")
    rules.addHandler(handler)
    yield told
    rules.removeHandler(handler)
    assert not told


@pytest.fixture(scope="session")
def digits():
    """Real digits, a few of them, at their own size."""
    return Digits(image_size=8, crop=1, limit=256)


@pytest.fixture
def mlp(digits):
    torch.manual_seed(0)
    return MLP(input_shape=[1, 8, 8], widths=[32]).eval()


@pytest.fixture
def context(digits, mlp, tmp_path):
    """Gives a stage's context for any variant traits."""

    def make(traits=("float",), max_steps=4):
        import copy

        return Context(
            task=SealedTask(digits),
            variant=Variant("id", None, frozenset(traits), {}),
            baseline=lambda: copy.deepcopy(mlp),
            build_model=lambda node: copy.deepcopy(mlp),
            seed=1,
            device=torch.device("cpu"),
            workdir=tmp_path,
            max_steps=max_steps,
        )

    return make


@pytest.fixture
def image_folder(tmp_path):
    """A folder of class folders with 12 images in train and 4 in test, for each of two classes."""
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for n in range(count):
                pixels = random.integers(0, 128, (10, 12, 3)) + 127 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{n}.png")
    return tmp_path / "images"


@pytest.fixture
def optkit_command():
    """Runs the optkit command in a process of its own."""

    def run(*arguments: str, cwd: Path | None = None, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "optkit", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=timeout, check=False)

    return run


@pytest.fixture
def command_here():
    """Runs the optkit command in this process, and leaves optkit's logger as it was."""
    before = LOGGER.handlers[:], LOGGER.propagate, LOGGER.level

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(cli, [*map(str, arguments)], prog_name="optkit", standalone_mode=False)

    yield run
    LOGGER.handlers[:], LOGGER.propagate = before[:2]
    LOGGER.setLevel(before[2])


def make_record(
    *,
    variant: str = "v0",
    baseline: str = "v0",
    parent: str | None = None,
    step: int = 0,
    stage: str = "train",
    correct: np.ndarray | None = None,
    series: dict[tuple[str, str], np.ndarray] | None = None,
    batch_size: int = 1,
) -> Record:
    """A record with the given answers on every engine that was timed, and the given latency series."""
    correct = np.array([True, True, False, True]) if correct is None else correct
    series = series or {("variant", "eager"): np.ones((4, 5))}
    here = {"batch_size": batch_size, "threads": 2}
    measurements = [Measurement("params", 10), Measurement("size", 0.5, unit="MB"), Measurement("macs", 100)]
    for of, engine in series:
        conditions = here | {"engine": engine}
        if of == "variant":
            value, packed = float(correct.mean()), pack_values(correct)
            split = conditions | {"split": "test"}
            measurements.append(Measurement("accuracy", value, "1", [0.0, 1.0], len(correct), split, packed, ACCURACY))
        times = series[of, engine]
        together = conditions | {"of": of, "interleaved": f"{variant}-{batch_size}"}
        measurements.append(
            Measurement("latency", float(np.median(times)), "ms", [0.9, 1.1], times.size, together, times.tolist())
        )
    return Record(
        run="run-1", recipe="r", variant=variant, parent=parent, baseline=baseline, step=step, stage=stage,
        technique="train", params={}, facts={}, measurements=measurements, cost=Cost(2.0, 3.0), environment={},
        time="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
