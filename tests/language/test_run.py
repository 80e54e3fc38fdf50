"""A recipe of a language model, end to end: judged once an engine, timed in reading prompts and in generating."""

import pytest

from optkit.core import ledger
from optkit.core.setting import Setting
from optkit.engines import Eager
from optkit.measure import Measure
from optkit.pipeline import run
from optkit.prune import MagnitudePruning
from optkit.recipe.plan import make_plan
from optkit.recipe.recipe import Recipe
from optkit.report import read_rows
from optkit.tasks.language.files import Language

LLAMA = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(texts, tmp_path_factory):
    recipe = Recipe(
        name="small",
        model={"_target_": "optkit.models.language_model", "config": LLAMA},
        task=Language(path=texts, tokenizer=str(texts), protocol="blocks-16"),
        chain=["mask"],
        stages={"mask": MagnitudePruning(0.5)},
        engines={"eager": Eager()},
        reference=Eager(),
        measure=Measure(batch_sizes=[1, 2], prompt_lengths=[8], seconds=0.01, memory=False, agreement_blocks=2),
        threads=1,
        out=str(tmp_path_factory.mktemp("runs")),
        text="name: small\n",
    )
    return run(make_plan(recipe)).folder


def test_quality_is_measured_once_and_stands_in_every_setting(folder):
    for record in ledger.read(folder):
        assert [(m.name, m.conditions) for m in record.primary] == [
            ("perplexity", {"engine": "eager", "threads": 1, "reference": True, "split": "test"})
        ]
        assert record.settings == [Setting(n, 8, w) for w in ("prefill", "decode") for n in (1, 2)]
    rows = read_rows([folder])
    assert [(r["step"], r["batch_size"], r["workload"]) for r in rows] == [
        (step, size, workload) for workload in ("prefill", "decode") for size in (1, 2) for step in (0, 1)
    ]
    assert all(r["quality_delta"] != 0 for r in rows if r["step"] == 1)
    assert {(r["workload"], r["batch_size"]): round(r["throughput"] * r["latency_p50_ms"] / 1e3) for r in rows} == {
        ("prefill", 1): 8, ("prefill", 2): 16, ("decode", 1): 1, ("decode", 2): 2,
    }  # fmt: skip
    assert all(r["throughput_unit"] == "tokens/s" for r in rows)
