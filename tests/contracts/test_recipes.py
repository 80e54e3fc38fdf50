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
    "measure.retries=0",
    "threads=1",
]
MEMORY = ["quickstart", "quickstart_lm"]  # a process for each variant and engine: once for each kind of model
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


LANGUAGE = {
    "quickstart_lm": [],
    "smollm2_wikitext2": [
        "task=docstrings_lm",
        "task.tokenizer=null",
        "model=llama_tiny",
        "~model.pretrained",
        "stages.width.round_to=16",
        "~engines.openvino",  # quickstart_lm has it
    ],
    "opt125m_gptq": [
        "task=docstrings_lm",
        "task.tokenizer=null",
        "~model.pretrained",
        "+model.config={model_type: opt, hidden_size: 32, ffn_dim: 64, num_hidden_layers: 1, num_attention_heads: 2}",
        "+model.config.word_embed_proj_dim=32",
        "+model.config.max_position_embeddings=128",
    ],
}


@pytest.mark.parametrize("name", [name for name in bundled_recipes() if name not in LANGUAGE])
def test_a_recipe_runs(name, optkit_command, tmp_path, image_folder):
    assert len(bundled_recipes()[name]) > 20
    data = [*DATA.get(name, ()), *([f"task.path={image_folder}"] if name == "resnet20_cifar10" else ())]
    memory = f"measure.memory={name in MEMORY}"
    done = optkit_command("run", name, *SMALL, memory, *data, cwd=tmp_path, timeout=800)
    assert done.returncode == 0, done.stderr
    rows = json.loads(next((tmp_path / "runs").glob(f"{name}-*/report.json")).read_text())
    last = [r for r in rows if r["step"] == max(r["step"] for r in rows)]
    assert [r["engine"] for r in last] == [ENGINE.get(name, "inductor")]
    # dynamic int8 leaves the products of attention in float
    assert last[0]["int8_share"] > (0.6 if name in ATTENTION else 0.95)
    assert last[0]["macs"] == pytest.approx(rows[0]["macs"] * MACS.get(name, 0.5), rel=0.06)
    if name in MEMORY:
        assert last[0]["peak_memory_mb"] > 50
    assert last[0]["size_mb"] < rows[0]["size_mb"] / (1.2 if name in ATTENTION else 2)
    assert (rows[0]["tokenize_ms"] is not None) == (name in TEXTS)


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_recipe_of_a_language_model_runs(name, optkit_command, tmp_path):
    small = ["debug=smoke", "debug.limit=8", "measure.seconds=0.05", "measure.retries=0", "threads=1"]
    small.append(f"measure.memory={name in MEMORY}")
    lengths = ["measure.prompt_lengths=[8]", "task.protocol=blocks-64", "task.train_length=64"]
    done = optkit_command("run", name, *small, *lengths, *LANGUAGE[name], cwd=tmp_path, timeout=800)
    assert done.returncode == 0, done.stderr
    rows = json.loads(next((tmp_path / "runs").glob(f"{name}-*/report.json")).read_text())
    first, last = rows[0], max(rows, key=lambda r: r["step"])
    assert {(r["workload"], r["sequence_length"]) for r in rows} == {("prefill", 8), ("decode", 8)}
    assert {r["throughput_unit"] for r in rows} == {"tokens/s"}
    assert (first["metric"], first["higher_is_better"]) == ("perplexity", False)
    assert last["size_mb"] < first["size_mb"] / (1 if name == "opt125m_gptq" else 2)  # most of it are embeddings
    assert (last["cache_mb"] < first["cache_mb"]) == (name != "opt125m_gptq")
