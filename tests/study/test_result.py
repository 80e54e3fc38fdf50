from dataclasses import replace

import numpy as np
import pytest

from optkit.core.records import Measurement, pack_values
from optkit.report import rows
from optkit.report.ablation import ablation_markdown
from optkit.report.controls import pooled_against_controls
from optkit.report.written import ACCURACY
from optkit.study.result import Measured, summarize
from tests.report.runs import busy, two_lengths


def _with_memory(record):
    """As the bench has it: at the longest texts only."""
    here = {"engine": "inductor", "batch_size": 8, "threads": 2, "sequence_length": 64}
    return [*record.measurements, Measurement("peak_memory", 100 - 20 * record.step, "MB", conditions=here)]


@pytest.fixture
def measured():
    first, pruned, *_ = (replace(r, measurements=_with_memory(r)) for r in two_lengths())
    return Measured([[first, replace(pruned, chain=["prune"])]], ["prune"], "inductor", [0], ["eager", "inductor"])


def test_each_length_of_texts_is_a_batch_of_its_own(measured):
    short, long = summarize(measured, shapley=True)
    assert [(b["batch_size"], b["sequence_length"]) for b in (short, long)] == [(8, 32), (8, 64)]
    assert short["total"]["latency"]["value"] == pytest.approx(1 / 1.5, rel=0.02)
    assert long["total"]["latency"]["value"] == pytest.approx(0.8 / 1.5, rel=0.02)
    assert long["total"]["peak_memory"]["value"] == pytest.approx(0.8)
    assert "peak_memory" not in short["total"]
    study = {
        "recipe": "r", "techniques": ["prune"], "baseline": "train", "seeds": [0], "engine": "inductor", "skipped": [],
        "counters": {"chains": 2, "stages_in_all_chains": 2, "distinct_stages": 2, "made_now": 2, "already_there": 0},
        "batches": [short, long], "metric": measured.metric,
    }  # fmt: skip
    text = ablation_markdown(study)
    assert "## Batch 8, 32 tokens" in text
    assert "## Batch 8, 64 tokens" in text


def test_margins_over_controls_say_at_which_length(measured):
    (records,) = measured.records
    control = replace(records[1], variant="c1", control="random_prune")
    batches = summarize(replace(measured, records=[[*records, control]] * 2, seeds=[0, 1]), shapley=True)
    (line,) = pooled_against_controls(batches, ACCURACY)
    assert "on inductor at batch 8, 64 tokens" in line


def test_an_ablation_and_a_report_say_the_same_of_one_pair(measured):
    by = {(r["step"], r["sequence_length"], r["engine"]): r for r in rows(measured.records[0])}
    for batch in summarize(measured, shapley=True):
        row = by[1, batch["sequence_length"], "inductor"]
        accuracy = batch["total"]["quality"]
        assert accuracy == {"value": row["quality_delta"], "ci": row["quality_delta_ci"]}
        assert batch["attribution"]["effects"][0]["quality"] == accuracy


def test_a_baseline_that_was_also_measured_on_eager_counts_on_the_recipes_engines(measured):
    both, inductor = (summarize(replace(measured, engines=e), True)[0] for e in (["eager", "inductor"], ["inductor"]))
    assert {v["engine"] for v in inductor["variants"]} == {"inductor"}
    assert both["total"]["quality"] == inductor["total"]["quality"]
    best = replace(measured, engine="best", engines=["eager"])
    assert {v["engine"] for v in summarize(best, True)[0]["variants"]} == {"eager"}


def test_accuracies_over_seeds_are_shares(measured):
    right = [
        replace(m, raw=pack_values(np.ones(m.n, bool)), value=1.0) if m.name == "accuracy" else m
        for m in measured.records[0][0].measurements
    ]
    seeds = [[replace(record, measurements=right) if not record.step else record for record in measured.records[0]]] * 3
    first = summarize(replace(measured, records=seeds, seeds=[0, 1, 2]), True)[0]["variants"][0]
    assert first["quality"]["ci"] == [1.0, 1.0]


def test_effects_on_latency_of_a_timing_that_cannot_be_trusted_are_not_given(measured):
    records = busy(measured.records[0])
    doubted = replace(measured, records=[records])
    batch = summarize(doubted, shapley=True)[0]
    assert batch["in_doubt"] == [{"chain": ["prune"], "engine": "inductor", "caveat": "other work kept 1.3 cores busy"}]
    (effect,) = batch["attribution"]["effects"]
    assert (effect["latency"], batch["total"]["latency"]) == (None, None)
    quiet = summarize(measured, shapley=True)[0]
    assert (quiet["in_doubt"], effect["quality"]) == ([], quiet["attribution"]["effects"][0]["quality"])
    result = {
        "counters": dict.fromkeys(("chains", "stages_in_all_chains", "distinct_stages", "made_now", "already_there"), 1),
        "recipe": "r", "techniques": ["prune"], "baseline": "train", "seeds": [0], "engine": "inductor", "skipped": [],
        "batches": [batch], "metric": measured.metric,
    }  # fmt: skip
    text = ablation_markdown(result)
    assert "whose timing cannot be trusted: prune on inductor (other work kept 1.3 cores busy)." in text


def test_the_best_engine_is_that_of_timings_that_can_be_trusted(measured):
    first, pruned = measured.records[0]
    marked = [
        replace(m, conditions=m.conditions | {"disturbed": True})
        if m.name == "latency" and m.conditions["engine"] == "inductor"
        else m
        for m in pruned.measurements
    ]
    doubted = replace(measured, engine="best", records=[[first, replace(pruned, measurements=marked)]])
    chosen = {tuple(v["chain"]): v["engine"] for v in summarize(doubted, True)[0]["variants"]}
    assert chosen == {(): "inductor", ("prune",): "eager"}
