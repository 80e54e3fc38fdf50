"""Statistics of data that one process and two must find alike: what int8 and pruning go by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optkit.core.stage import Context
from optkit.core.task import SealedTask
from optkit.core.variant import Variant
from optkit.measure.validation import Validation
from optkit.prune import DepthPruning, MagnitudePruning, StructuredPruning
from optkit.prune.cut.analysis import Analysis
from optkit.prune.cut.criteria import data_for
from optkit.quantize import StaticQuantization, calibrate
from optkit.quantize.graph.observers import OBSERVERS
from optkit.quantize.stages.calibrated import Calibration
from optkit.quantize.static import observers
from tests.training.several import DIGITS, mlp, transformer

TASK = SealedTask(DIGITS)
CONTEXT = Context(
    task=TASK,
    variant=Variant("parent", None, frozenset({"float"}), {}),
    baseline=mlp,
    build_model=lambda node: mlp(),
    seed=3,
    device=torch.device("cpu"),
    workdir=Path(),
)


def quantized(batches: int = 9, make: Callable[[], Any] = transformer, **options: Any) -> dict[str, Tensor]:
    """The weights and the scales of an int8 graph; 131 examples are 9 batches, of which the last has 3."""
    stage = StaticQuantization(batches=batches, batch_size=16, **options)
    outcome = stage.apply(make(), CONTEXT)
    grids = {name: torch.tensor(grid, dtype=torch.float64) for name, grid in outcome.surgery["activations"].items()}
    kept = torch.tensor([len(outcome.facts.get("in_float", ()))])
    return grids | {"layers in float": kept} | {n: x.clone() for n, x in outcome.module.state_dict().items()}


def ranges() -> dict[str, Tensor]:
    """What every scheme makes of every activation."""
    calibrated = calibrate(mlp(), DIGITS.example(2), Calibration(TASK, 16, 9, 3))
    return {name: torch.tensor([o.range() for o in observers(calibrated.choose(name).graph)]) for name in OBSERVERS}


def noise() -> dict[str, Tensor]:
    """What int8 costs in every layer."""
    costs = StaticQuantization(batches=3, batch_size=16).measure_layers(mlp(), TASK, 3)
    found = torch.tensor([[layer.sqnr_db, layer.gain] for layer in costs.layers])
    return {"layers": found, "losses": torch.tensor([costs.float_loss, costs.int8_loss])}


def scores(batches: int = 5) -> dict[str, Tensor]:
    """The score of every unit under the criteria that read data."""
    model, found = mlp(), {}
    for criterion in ("taylor", "fisher", "activation"):
        read = list(TASK.batches("train", 16, seed=1))[:batches]
        read, loss_fn = data_for(criterion, read, lambda m, batch: TASK.loss(TASK.forward(m, batch), batch))
        analysis = Analysis(model, DIGITS.example(2))
        found[criterion] = torch.from_numpy(analysis.scores(analysis.importance(criterion, read, loss_fn, 0)))
    return found


def sensitivities() -> dict[str, Tensor]:
    """The curves of every group, by the loss and by the metric."""
    stage = StructuredPruning(criterion="taylor", batches=3)
    curves = {metric: stage.measure_sensitivity(mlp(), TASK, 3, metric) for metric in ("loss", "metric")}
    return {name: torch.tensor([c.dense, *(x for one in c.curves for x in one.values)]) for name, c in curves.items()}


def validation() -> dict[str, Tensor]:
    """Loss and metric of one example, which one of two processes lacks, and of all."""
    found = {n: Validation(TASK, n, metric)(mlp()) for n, metric in ((1, "loss"), (2, "metric"), (1000, "metric"))}
    return {str(n): torch.tensor(value) for n, value in found.items()}


def depth() -> dict[str, Tensor]:
    """What blocks are chosen by."""
    facts = {by: DepthPruning(by=by).apply(transformer(), CONTEXT).facts["depth"] for by in ("influence", "loss")}
    influence = torch.tensor(list(facts["influence"]["influence"].values()))
    return {"influence": influence, "losses": torch.tensor(facts["loss"]["losses"])}


def masked(criterion: str) -> dict[str, Tensor]:
    """The weights that are left, block after block."""
    return MagnitudePruning(criterion=criterion, examples=100).apply(transformer(), CONTEXT).module.state_dict()


TOOLS = {"smooth": 0.5, "rounding": "gptq", "correct_bias": True}
FOUND: dict[str, Callable[[], dict[str, Tensor]]] = {
    "int8": lambda: quantized(**TOOLS),
    "int8 of one batch": lambda: quantized(1, mlp, **TOOLS),
    "equalized": lambda: quantized(make=mlp, equalize=True, observer="moving_average"),
    "mixed precision": lambda: quantized(2, mlp, max_drop=1e-4, sensitivity_examples=100),
    "ranges": ranges,
    "noise": noise,
    "scores": scores,
    "scores of one batch": lambda: scores(1),
    "sensitivities": sensitivities,
    "validation": validation,
    "depth": depth,
    "wanda": lambda: masked("wanda"),
    "sparsegpt": lambda: masked("sparsegpt"),
}
