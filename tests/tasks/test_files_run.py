"""The tasks on files, each through a recipe of training, pruning and int8, on generated files."""

import re
from pathlib import Path

import pytest

import optkit

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs/data.md"
SMALL = [
    "debug=smoke",
    "threads=1",
    "measure.seconds=0.05",
    "measure.memory=false",
    "measure.retries=0",
    "measure.batch_sizes=[8]",
    "~engines.inductor",
    "+engine@engines.onnxruntime=onnxruntime",
    "stages.quantize.target=onnxruntime",
    "stages.quantize.batches=1",
]
# the recipes of docs/examples/kinds run the others (tests/docs/test_kinds.py)
CASES = {
    "segmentation": (["task.image_size=32", "model.widths=[8,16]"], "mean_iou"),
    "multilabel": (
        ["task=multilabel", "model=small_cnn", "model.widths=[8,16]", "task.list_column=shapes", "task.image_size=32"],
        "multilabel_f1",
    ),
    "numbers": (
        ["task=regression", "model=mlp", "model.widths=[32,32]", "task.target_columns=[covered]", "task.unit=%", "task.input_columns=[disc,square]"],
        "mae",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_task_goes_through_a_recipe(name, scenes, shapes, tmp_path, monkeypatch):
    options, metric = CASES[name]
    (recipe,) = re.findall(r"```yaml\n(defaults:.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "scenes.yaml").write_text(recipe)
    monkeypatch.chdir(tmp_path)
    rows = optkit.run("scenes.yaml", *SMALL, *options).rows
    assert {(row["step"], row["stage"]) for row in rows} == {
        (0, "train"),
        (1, "prune"),
        (2, "recover"),
        (3, "quantize"),
    }
    last = rows[-1]
    unit = "%" if name == "numbers" else "1"
    assert (last["metric"], last["unit"], last["engine"], last["examples"]) == (metric, unit, "onnxruntime", 10)
    assert last["quality_delta_ci"][0] <= last["quality_delta"] <= last["quality_delta_ci"][1]
    assert last["macs"] < rows[0]["macs"]
    assert last["int8_share"] > 0.9
