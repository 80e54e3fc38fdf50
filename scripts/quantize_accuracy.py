"""What static int8 costs in accuracy, on the engine it was made for, beside the engine's own tool.

    optkit run RECIPE 'chain=[train]' ... && python scripts/quantize_accuracy.py RECIPE 'chain=[train]' ...
        [--targets openvino ...] [--ways histogram tools ...] [--native] [--batches 10] [--batch-size 32]

Quantizes the baseline of a recipe, as the store has it, in several ways, and gives the accuracy on the test split of
the compiled engine, its difference from the float model with the paired 95% interval, and with --native that from
``nncf.quantize`` (OpenVINO), ``onnxruntime.quantization.quantize_static`` or torchao's ``X86InductorQuantizer``,
calibrated on the same batches. The other arguments are the recipe's overrides.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optkit import engines
from optkit.core.errors import OptkitError
from optkit.core.records import unpack_values
from optkit.core.statistics import paired_difference
from optkit.core.task import SealedTask, Task
from optkit.launch import launch
from optkit.measure.quality import measure_quality
from optkit.pipeline import baseline
from optkit.quantize import quantize_static
from optkit.quantize.stages.calibrated import Calibration
from optkit.recipe.compose import to_recipe
from optkit.recipe.plan import make_plan
from scripts.quantize_speed import NATIVE

WAYS: dict[str, dict[str, Any]] = {
    "minmax": {"observer": "minmax"},
    "moving_average": {"observer": "moving_average"},
    "histogram": {},
    "percentile": {"observer": "percentile"},
    "entropy": {"observer": "entropy"},
    "equalize": {"equalize": True},
    "smooth": {"smooth": 0.5},
    "gptq": {"rounding": "gptq"},
    "correct_bias": {"correct_bias": True},
    "equalize, gptq, correct_bias": {"equalize": True, "rounding": "gptq", "correct_bias": True},
    "smooth, gptq, correct_bias": {"smooth": 0.5, "rounding": "gptq", "correct_bias": True},
}


class Table:
    """Prints a row for every model that is quantized.

    Args:
        task: whose test split is answered.
        batch_size: that engines are compiled for.
    """

    def __init__(self, task: Task, batch_size: int):
        self.task, self.batch_size = task, batch_size
        self.references: dict[str, np.ndarray] = {}
        print("| engine | int8 | accuracy | to float | to the engine's own tool | s |\n|---|---|---:|---|---|---:|")

    def row(self, engine: str, way: str, make: Callable[[], Callable[..., Tensor]]) -> None:
        """Makes a session, lets it answer the test split, and prints how that went."""
        started = time.perf_counter()
        try:
            session = make()
        except (OptkitError, RuntimeError, ValueError) as error:
            print(f"| {engine} | {way} | {str(error).splitlines()[0][:70]} | | | |", flush=True)
            return
        seconds = time.perf_counter() - started
        found = measure_quality(session, self.task, "test", self.batch_size, {})  # type: ignore[arg-type]
        right = unpack_values(found[0].raw)
        self.references.setdefault(way, right)
        beside = [self.difference(right, reference) for reference in ("float", f"native {engine}")]
        print(f"| {engine} | {way} | {100 * right.mean():.2f} | {' | '.join(beside)} | {seconds:.0f} |", flush=True)

    def difference(self, right: np.ndarray, reference: str) -> str:
        """From a row that was printed before; nothing where there is none, and for that row itself."""
        other = self.references.get(reference)
        if other is None or other is right:
            return ""
        delta = paired_difference(right, other).delta
        return f"{100 * delta.value:+.2f} [{100 * delta.low:+.2f}, {100 * delta.high:+.2f}]"


def compare(cfg: Any, args: argparse.Namespace) -> None:
    """One composed recipe."""
    recipe = to_recipe(cfg)
    torch.set_num_threads(args.threads)
    _, model = baseline(make_plan(recipe))
    task, x = recipe.task, recipe.task.example(args.batch_size)
    batches = list(Calibration(SealedTask(task), args.batch_size, args.batches, recipe.seed))
    table = Table(task, args.batch_size)
    table.row("eager", "float", lambda: engines.compile(model, x, engine="eager"))
    for target in args.targets:
        if args.native:
            table.row(target, f"native {target}", lambda target=target: NATIVE[target](model, x, batches))
        for way in args.ways:

            def ours(options: dict[str, Any] = WAYS[way], target: str = target) -> Callable[..., Tensor]:
                quantized = quantize_static(model, task.example(2), batches, target=target, **options)
                return engines.compile(quantized.module, x, engine=target)

            table.row(target, way, ours)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--targets", nargs="+", default=list(NATIVE), choices=list(NATIVE))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--native", action="store_true")
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    args, overrides = parser.parse_known_args()
    warnings.simplefilter("ignore")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    launch(args.recipe, overrides, lambda cfg: compare(cfg, args))


if __name__ == "__main__":
    main()
