"""A recipe that trains, prunes, distills and quantizes, for each kind of output, on the engines of its int8."""

import math

import pytest

from optkit.core import ledger
from optkit.distill import Distillation
from optkit.engines import ENGINES
from optkit.measure import Measure
from optkit.pipeline import run
from optkit.prune import StructuredPruning
from optkit.quantize import StaticQuantization
from optkit.recipe.plan import make_plan
from optkit.recipe.recipe import Recipe
from optkit.report import rows
from optkit.training import Train, Trainer
from tests.contracts.kinds import NUMBERS, KindTask

pytestmark = pytest.mark.slow


def _trainer(epochs):
    return Trainer(epochs=epochs, batch_size=16, optimizer="adamw", lr=0.01, schedule="cosine", precision="fp32")


@pytest.mark.parametrize(
    ("kind", "engine"),
    [
        ("labels", "openvino"),
        ("values", "onnxruntime"),
        ("class_maps", "openvino"),
        ("embeddings", "onnxruntime"),
        ("tuple", "openvino"),
        ("dict", "onnxruntime"),
    ],
)
def test_a_chain_runs_from_training_to_int8(kind, engine, tmp_path):
    task, of_engine = KindTask(kind), ENGINES[engine]()
    losses = {"kd": 1.0} if kind in NUMBERS else {"hidden": 1.0}
    recipe = Recipe(
        name=kind,
        model={"_target_": "tests.contracts.kinds.TinyNet", "kind": kind},
        task=task,
        chain=["train", "prune", "distill", "int8"],
        stages={
            "train": Train(_trainer(15)),
            "prune": StructuredPruning(0.2, criterion="taylor", batches=2),
            "distill": Distillation(losses, trainer=_trainer(3)),
            "int8": StaticQuantization(target=engine, batches=2, batch_size=16),
        },
        engines={engine: of_engine},
        reference=of_engine,
        measure=Measure(batch_sizes=[8], seconds=0.01, memory=False),
        threads=1,
        out=str(tmp_path / "runs"),
        text=f"name: {kind}\n",
    )
    folder = run(make_plan(recipe)).folder
    records = ledger.read(folder)
    assert [record.stage for record in records] == ["train", "prune", "distill", "int8"]
    name = task.metrics[0].name
    for record in records:
        (found,) = [m for m in record.measurements if m.name == name]
        assert math.isfinite(found.value)
        assert found.ci[0] <= found.value <= found.ci[1]
        assert found.n == task.size("test")
        assert found.conditions["engine"] == engine
    share = [m.value for m in records[-1].measurements if m.name == "int8_share"]
    assert share == [pytest.approx(1, abs=0.5)]
    assert [row["stage"] for row in rows(records)] == recipe.chain
