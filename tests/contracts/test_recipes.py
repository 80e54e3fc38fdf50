"""Every bundled recipe composes, says what it shows, and runs (a few examples, a few steps) through the command line."""

import json

import pytest

from optkit.recipe.compose import bundled_recipes

pytestmark = pytest.mark.slow

SMALL = [
    "debug=smoke",
    "engines.inductor.cpp_wrapper=false",
    "measure.seconds=0.05",
    "measure.batch_sizes=[8]",
    "threads=1",
]
TEXTS = ["quickstart_text", "minilm_sst2"]
ATTENTION = [*TEXTS, "vit_tiny_digits"]
DATA = {
    "resnet20_cifar10": [
        "task._target_=optkit.tasks.ImageFolder",
        "task.image_size=16",
    ],
    "minilm_sst2": [
        "task=docstrings",
        "task.tokenizer=null",
        "model=bert_tiny",
        "~model.pretrained",
        "model.config.num_hidden_layers=6",
        "stages.prune.round_to=4",
        "~engines.inductor",  # compiles every step of the longest chain for minutes; quickstart_text has it
    ],
}
MACS = {"minilm_sst2": 0.5 * 0.75}
ENGINE = {"minilm_sst2": "openvino"}  # fmt: skip


@pytest.mark.parametrize("name", bundled_recipes())
def test_a_recipe_runs(name, optkit_command, tmp_path, image_folder):
    assert len(bundled_recipes()[name]) > 20
    data = [*DATA.get(name, ()), *([f"task.path={image_folder}"] if name == "resnet20_cifar10" else ())]
    done = optkit_command("run", name, *SMALL, *data, cwd=tmp_path, timeout=800)
    assert done.returncode == 0, done.stderr
    rows = json.loads(next((tmp_path / "runs").glob(f"{name}-*/report.json")).read_text())
    last = [r for r in rows if r["step"] == max(r["step"] for r in rows)]
    assert [r["engine"] for r in last] == [ENGINE.get(name, "inductor")]
    # dynamic int8 leaves the products of attention in float
    assert last[0]["int8_share"] > (0.6 if name in ATTENTION else 0.95)
    assert last[0]["macs"] == pytest.approx(rows[0]["macs"] * MACS.get(name, 0.5), rel=0.06)
    assert last[0]["peak_memory_mb"] > 50
    assert last[0]["size_mb"] < rows[0]["size_mb"] / (1.2 if name in ATTENTION else 2)
    assert (rows[0]["tokenize_ms"] is not None) == (name in TEXTS)
