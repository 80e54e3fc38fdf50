"""The recipes and the script of docs/examples/kinds run on the files that docs/examples/scenes.py makes."""

import shutil
import subprocess
import sys

import pytest

import optkit
from tests.docs.blocks import ROOT

KINDS = ROOT / "docs/examples/kinds"
FILES = """
from scenes import make_scenes, make_shapes
sizes = {"train": 24, "validation": 6, "test": 12}
make_scenes("scenes", sizes, side=32)
make_shapes("shapes", sizes)
"""
SMALL = [
    *("debug=smoke", "task.workers=0", "stages.quantize.batches=1", "measure.batch_sizes=[4]", "measure.seconds=0.02"),
    *("measure.memory=false", "measure.retries=0"),
]
# kind: its metric, and the engine of its int8 variant here
METRICS = {
    "classification": ("accuracy", "onnxruntime"),
    "segmentation": ("mean_iou", "openvino"),
    "detection": ("map", "onnxruntime"),
    "regression": ("mae", "openvino"),
    "multilabel": ("multilabel_f1", "onnxruntime"),
    "retrieval": ("recall_at_1", "openvino"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the recipes, the script and a few pictures."""
    folder = tmp_path_factory.mktemp("kinds")
    shutil.copytree(KINDS, folder, dirs_exist_ok=True)
    shutil.copy(ROOT / "docs/examples/scenes.py", folder)
    run(folder, "-c", FILES)
    return folder


def run(folder, *arguments):
    """Runs Python in the folder."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_every_recipe_is_tried():
    assert {path.stem for path in KINDS.glob("*.yaml")} == set(METRICS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", METRICS)
def test_recipe_measures_every_stage(kind, folder, monkeypatch):
    metric, target = METRICS[kind]
    (other,) = {"onnxruntime", "openvino"} - {target}
    monkeypatch.chdir(folder)
    found = optkit.run(f"{kind}.yaml", f"stages.quantize.target={target}", f"~engines.{other}", *SMALL).rows
    both = ["eager", target]
    expected = [(stage, engine) for stage in ("train", "prune", "recover") for engine in both] + [("quantize", target)]
    assert [(row["stage"], row["engine"]) for row in found] == expected
    for row in found:
        assert row["metric"] == metric
        low, high = row["quality_ci"]
        assert low <= row["quality"] <= high
        low, high = row["quality_delta_ci"]
        assert low <= row["quality_delta"] <= high


@pytest.mark.slow
def test_script_compares_three_kinds(folder):
    text = (KINDS / "without_recipe.py").read_text()
    short = text.replace("20, 1.0, [", "1, 0.02, [")
    assert short != text
    printed = run(folder, "-c", short)
    rows = [line.split() for line in printed.splitlines() if line.startswith(("fp32 ", "pruned ", "int8 "))]
    assert len(rows) == 3 * 4 * 2
    assert len([row for row in rows if "run" in row]) == 3 * 2  # int8 for the other engine
