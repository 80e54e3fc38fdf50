"""Layers in float chosen exactly against the greedy order of losses, at equal predicted latency.

    python scripts/quantize_allocation.py RECIPE 'chain=[quantize]' ... [--target openvino] [--counts 1 2 4 8]
        [--examples 1000] [--test 2000] [--batch-size 32] [--macs]

For each number of layers that the greedy order of `max_drop` leaves in float, the exact choice gets the same sum of
layer times. Both are judged by the loss and the first metric on the test split, as graphs that PyTorch simulates.
Layers are chosen on validation. Times are measured on the target's engine; with --macs they are MACs instead, a quarter
in int8. The other arguments are the recipe's overrides.
"""

from __future__ import annotations

import argparse
from itertools import islice
from typing import Any

import torch
from torch import nn

from optkit.core.macs import count_macs
from optkit.core.metric import observed, stacked
from optkit.core.task import SealedTask, Task
from optkit.launch import launch
from optkit.measure.validation import Validation
from optkit.pipeline import baseline
from optkit.quantize.graph.layers import simulated
from optkit.quantize.layer_times import parts_in_float, time_layers
from optkit.quantize.mixed_precision import LayerTime, gains_in_float, layers_in_float, losses_in_float
from optkit.quantize.options import StaticOptions
from optkit.quantize.stages.calibrated import Calibration
from optkit.quantize.static import Calibrated, calibrate_static
from optkit.recipe.compose import to_recipe
from optkit.recipe.plan import make_plan

ROWS = 100


def by_macs(calibrated: Calibrated, example: tuple[torch.Tensor, ...]) -> dict[str, LayerTime]:
    """A clock on which a layer takes as long as it has MACs, and a quarter of that in int8."""
    found: dict[str, LayerTime] = {}
    for part in parts_in_float(calibrated, example):
        ms = found.get(part.path, LayerTime(0.0, 0.0)).float + 1e-6 * count_macs(part.module, part.inputs)
        found[part.path] = LayerTime(ms / 4, ms)
    return found


@torch.no_grad()
def on_test(module: nn.Module, task: Task, examples: int) -> tuple[float, float]:
    """Loss and first metric."""
    loss, count, tables = 0.0, 0, []
    for batch in islice(task.batches("test", ROWS), examples // ROWS):
        output = task.forward(module, batch)
        loss, count = loss + float(task.loss(output, batch)) * len(batch), count + len(batch)
        tables.append(observed(task.metrics[0], output, batch))
    return loss / count, task.metrics[0].value(stacked(tables))


def compare(cfg: Any, args: argparse.Namespace) -> None:
    """One composed recipe."""
    recipe = to_recipe(cfg)
    torch.set_num_threads(args.threads)
    _, model = baseline(make_plan(recipe))
    model, task = model.eval(), recipe.task
    batches = list(Calibration(SealedTask(task), 32, 10, recipe.seed))
    options = StaticOptions(target=args.target, observer=args.observer)
    graph = calibrate_static(model, task.example(2), batches, options).choose(args.observer)
    loss = Validation(SealedTask(task), args.examples)
    whole, gains = loss(simulated(graph.graph)), gains_in_float(graph.graph, loss)
    losses = losses_in_float(graph.graph, loss)
    example = task.example(args.batch_size)
    times = by_macs(graph, example) if args.macs else time_layers(graph, example, args.threads)
    ranked = sorted(losses, key=losses.__getitem__)
    in_float_ms = sum(times[path].float for path in gains)
    print(f"validation loss {loss(model):.5f} in float, {whole:.5f} in int8; {len(gains)} layers")
    print("| layers in float | chosen | share of the float latency | predicted loss saved | test loss | test metric |")
    print("|---:|---|---:|---:|---:|---:|")
    floating, int8 = (on_test(one, task, args.test) for one in (model, simulated(graph.graph)))
    print(f"| all | | 1.000 | {sum(gains.values()):.5f} | {floating[0]:.5f} | {floating[1]:.4f} |")
    share = sum(times[path].int8 for path in gains) / in_float_ms
    print(f"| 0 | | {share:.3f} | 0 | {int8[0]:.5f} | {int8[1]:.4f} |", flush=True)
    for count in args.counts:
        greedy = ranked[:count]
        budget = sum(times[path].float if path in greedy else times[path].int8 for path in gains)
        for name, paths in (("greedy", greedy), ("exact", layers_in_float(gains, times, budget))):
            ms = sum(times[path].float if path in paths else times[path].int8 for path in gains)
            saved = sum(gains[path] for path in paths)
            test_loss, metric = on_test(simulated(graph.graph, paths), task, args.test)
            cells = f"{ms / in_float_ms:.3f} | {saved:.5f} | {test_loss:.5f} | {metric:.4f}"
            print(f"| {len(paths)} | {name} | {cells} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--target", default="openvino")
    parser.add_argument("--observer", default="histogram")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--macs", action="store_true")
    args, overrides = parser.parse_known_args()
    launch(args.recipe, overrides, lambda cfg: compare(cfg, args))


if __name__ == "__main__":
    main()
