"""The tasks on files, each through a recipe of training, pruning and int8 by the command line, on generated files."""

import json
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs/data.md"
SMALL = [
    "debug=smoke",
    "threads=1",
    "measure.seconds=0.05",
    "measure.batch_sizes=[8]",
    "~engines.inductor",
    "+engine@engines.onnxruntime=onnxruntime",
    "stages.quantize.target=onnxruntime",
    "stages.quantize.batches=1",
]
CASES = {
    "segmentation": (["task.image_size=32", "model.widths=[8,16]"], "mean_iou", "1"),
    "detection": (["task=detection", "model=dense_detector", "task.image_size=32", "model.widths=[8,16]"], "map", "1"),
    "multilabel": (
        ["task=multilabel", "model=small_cnn", "model.widths=[8,16]", "task.list_column=shapes", "task.image_size=32"],
        "macro_f1",
        "1",
    ),
    "regression": (
        ["task=regression", "model=small_cnn", "model.widths=[8,16]", "task.target_columns=[covered]", "task.unit=%", "task.image_size=32"],
        "mae",
        "%",
    ),
    "numbers": (
        ["task=regression", "model=mlp", "model.widths=[32,32]", "task.target_columns=[covered]", "task.input_columns=[disc,square]"],
        "mae",
        "1",
    ),
    "retrieval": (["task=retrieval", "model=small_cnn", "model.widths=[8,16]", "task.path=shapes", "task.image_size=32"], "recall_at_1", "1"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_task_goes_through_a_recipe(name, optkit_command, scenes, shapes, tmp_path):
    options, metric, unit = CASES[name]
    (recipe,) = re.findall(r"```yaml\n(defaults:.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "scenes.yaml").write_text(recipe)
    done = optkit_command("run", "scenes.yaml", *SMALL, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads(next((tmp_path / "runs").glob("scenes-*/report.json")).read_text())
    assert {(row["step"], row["stage"]) for row in rows} == {
        (0, "train"),
        (1, "prune"),
        (2, "recover"),
        (3, "quantize"),
    }
    last = rows[-1]
    assert (last["metric"], last["unit"], last["engine"], last["examples"]) == (metric, unit, "onnxruntime", 10)
    assert last["quality_delta_ci"][0] <= last["quality_delta"] <= last["quality_delta_ci"][1]
    assert last["macs"] < rows[0]["macs"]
    assert last["int8_share"] > 0.9
