"""Timings that cannot be trusted: marked wherever they are printed, and left out of whatever is concluded."""

import csv
import io
import json
import math
import sys
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from optkit.core.ledger import Ledger
from optkit.core.setting import Setting
from optkit.core.statistics import Estimate
from optkit.report import render, rows, summarize, write_report
from optkit.report.batch_sizes import limit_cells
from optkit.report.caveats import MARK
from optkit.report.diff import diff_runs
from optkit.report.page.costs import break_evens
from optkit.report.page.runs import open_runs
from optkit.report.page.step_figures import step_figures
from optkit.report.page.steps import changes
from optkit.report.page.summary import shown
from optkit.report.page.verdict import verdict
from optkit.report.plot import on_front, steady_latency, tradeoff
from optkit.report.trackers import _metrics
from tests.report.runs import busy, chain, sweep, write_run

CAVEAT = "other work kept 1.3 cores busy"


@pytest.fixture
def records():
    """The chain of four, whose last variant would be the fastest by far, and was timed beside other work."""
    return busy(chain())


@pytest.fixture
def folder(tmp_path, records):
    folder = write_run(tmp_path / "run", records)
    for name in ("0-train", "1-prune", "2-recover", "3-quantize"):
        (folder / "variants" / name).mkdir(parents=True)
    return folder


def test_a_row_says_why_its_timing_cannot_be_trusted(records):
    found = {(r["stage"], r["engine"]): (r["disturbed"], r["caveat"]) for r in rows(records)}
    assert found["quantize", "inductor"] == (True, CAVEAT)
    assert all(value == (None, None) for (stage, _), value in found.items() if stage != "quantize")


def test_a_disturbed_baseline_beside_a_row_is_enough(records):
    last = chain()[-1]
    marked = [
        replace(m, conditions=m.conditions | {"disturbed": m.conditions["of"] == "baseline", "other_load": 0.4})
        if m.name == "latency" and m.conditions["engine"] == "eager"
        else m
        for m in last.measurements
    ]
    (row,) = rows([replace(last, measurements=marked)])
    assert row["caveat"] == "other work kept 0.4 cores busy"


def test_a_ratio_without_an_interval_is_a_caveat(monkeypatch):
    class NoInterval(Estimate):
        ci = None

    monkeypatch.setattr(
        sys.modules["optkit.report.rows"], "ratio_of_medians", lambda *a: NoInterval(3.0, 0.0, math.inf)
    )
    found = [r for r in rows(chain()) if r["step"] == 3]
    assert [(r["speedup"], r["speedup_ci"], r["caveat"]) for r in found] == [(3.0, None, "40 rounds give no interval")]


def test_every_format_marks_the_row(folder, records):
    for text in (render([folder], "md"), render([folder], "table"), render([folder], "html")):
        assert f"4.00{MARK}" in text
        assert text.count(CAVEAT) >= 1
        assert f"1.50{MARK}" not in text
    assert f"{MARK}" not in render([write_run(folder / "quiet", chain())], "md")
    table = list(csv.DictReader(io.StringIO(render([folder], "csv"))))
    assert [row["caveat"] for row in table] == [r["caveat"] or "" for r in rows(records)]
    assert table[0]["quality_low"] == "0.0"
    assert all(len(row) == len(table[0]) and None not in row for row in table)


def test_a_name_in_a_csv_is_no_formula(tmp_path):
    start = chain()[0]
    folder = write_run(tmp_path / "run", [replace(start, stage="=1+1")])
    assert {row["stage"] for row in csv.DictReader(io.StringIO(render([folder], "csv")))} == {"'=1+1"}


def test_a_card_marks_it_and_its_metadata_leave_it_out(folder):
    write_report(folder)
    card = ModelCard.load(folder / "variants/3-quantize/README.md")
    assert {result.metric_type for result in card.data.eval_results} == {"accuracy"}
    assert f"4.00{MARK}" in card.text
    assert CAVEAT in card.text
    before = ModelCard.load(folder / "variants/2-recover/README.md")
    assert {result.metric_type for result in before.data.eval_results} == {"accuracy", "speedup", "latency_ms"}


def test_the_verdict_is_not_about_it(folder, records):
    found = verdict(rows(records), folder)
    assert (found.row["stage"], found.row["engine"]) == ("recover", "inductor")
    assert all(c.row is None or c.row["stage"] != "quantize" for c in found.choices)
    assert "4.0" not in found.sentence + found.chain
    assert found.chain == "The end of the chain has no timing that can be trusted there."
    assert found.doubt.endswith(f"cannot be trusted: 3 quantize at batch 8 ({CAVEAT}).")
    assert found.command == f"optkit measure {folder} --rows marked"
    tiles = {tile["name"]: tile["value"] for tile in shown(open_runs([folder])[0])["tiles"]}
    assert tiles["speedup"].startswith("3.0")


def test_where_nothing_can_be_trusted_nothing_is_concluded(tmp_path):
    records = chain()
    for place in range(4):
        records = busy(records, place)
    found = verdict(rows(records))
    assert found.row is None
    assert found.sentence == "There is no verdict on speed: no timing of a variant can be trusted."
    assert found.chain == ""
    folder = write_run(tmp_path / "run", records)
    assert render([folder], "html").startswith("<!doctype html>")
    assert step_figures(open_runs([folder])[0]) == []
    assert break_evens(rows(records)) == []
    tradeoff(rows(records)).to_dict()


def test_the_waterfall_of_latency_takes_it_with_the_next_step():
    found = rows(busy(chain(), 1))
    steps = changes(found, "inductor", Setting(8), timed=True)
    assert [s.name for s in steps] == ["train, eager", "inductor engine", "1 prune + 2 recover", "3 quantize"]
    assert math.prod(s.ratio for s in steps) == pytest.approx(steps[-1].row["speedup"])
    every = changes(found, "inductor", Setting(8))
    assert [(s.name, s.ratio is None) for s in every[2:]] == [
        ("1 prune", True),
        ("2 recover", True),
        ("3 quantize", False),
    ]
    assert sum(s.delta for s in every) == pytest.approx(every[-1].row["quality"] - every[0].row["quality"])


def test_the_waterfall_says_what_it_leaves_out(folder):
    latency, accuracy = step_figures(open_runs([folder])[0])
    assert "3 quantize at batch 8" in latency.caption
    assert [row[0] for row in latency.table.rows][-1] == "2 recover"
    assert [row[0] for row in accuracy.table.rows][-1] == "3 quantize"


def test_it_is_hollow_and_not_on_the_front(records):
    steady = steady_latency(rows(records))
    fronts = {
        row["step"]: front for row, front in zip(steady, on_front(steady), strict=True) if row["engine"] == "inductor"
    }
    assert fronts == {0: True, 1: False, 2: True, 3: False}
    spec = json.dumps(tradeoff(rows(records)).to_dict())
    assert '"title": "hollow"' in spec
    assert '"title": "hollow"' not in json.dumps(tradeoff(rows(chain())).to_dict())


def test_where_the_baselines_own_rounds_were_disturbed_another_variants_tell_its_latency():
    steady = {(r["step"], r["engine"]): r["latency_p50_ms"] for r in steady_latency(rows(busy(chain(), 0)))}
    trusted = next(r for r in rows(chain()) if r["step"] == 1 and r["engine"] == "eager")
    assert steady[0, "eager"] == pytest.approx(trusted["latency_p50_ms"] * trusted["speedup"])


def test_it_breaks_never_even_and_fits_no_limit(records):
    assert {b.row["stage"] for b in break_evens(rows(records))} == {"prune", "recover"}
    found = rows(busy(sweep()))
    assert {r["largest_batch_within_p99_limit"] for r in found if r["step"] == 3} == {None}
    assert (
        f"nothing can be said; p99 not known at batch 1 ({CAVEAT}), 8 ({CAVEAT}), 32 ({CAVEAT})"
        in limit_cells(found)[-1]
    )


def test_a_diff_compares_its_accuracy_only(tmp_path, records):
    found = diff_runs(write_run(tmp_path / "a", records), write_run(tmp_path / "b", chain()))
    pairs = {(p.stage, p.engine): p for p in found.pairs}
    last, before = pairs["quantize", "inductor"], pairs["recover", "inductor"]
    assert (last.latency_ratio, last.speedup_ratio, last.caveat) == (None, None, CAVEAT)
    assert last.quality_delta == 0.0
    assert before.speedup_ratio == pytest.approx(1.0)
    assert found.warnings == [
        f"timings that cannot be trusted ({MARK}) are not compared: 3 quantize at batch 8 ({CAVEAT})"
    ]


def test_a_tracker_gets_a_flag(records):
    found = rows(records)
    assert _metrics(records[3], found)["inductor/batch 8/timing_trusted"] == 0.0
    assert _metrics(records[2], found)["inductor/batch 8/timing_trusted"] == 1.0


@pytest.mark.parametrize("width", [60, 80, 100, 240])
def test_a_run_ends_with_a_verdict_under_a_table_that_fits(folder, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    text = summarize(folder)
    prose = [line.rstrip() for line in text.splitlines() if str(folder) not in line]
    assert max(map(len, prose)) <= min(width, 100)
    table, verdict_ = text.split("run folder:")
    assert "change, points" in table or width < 90
    assert "speedup" in table
    assert " ".join(verdict_.split()).endswith(f"({CAVEAT}). Time them again: optkit measure {folder} --rows marked")
    assert "Serve “recover”" in verdict_


def test_a_run_measured_again_is_no_longer_marked(tmp_path, records):
    folder = write_run(tmp_path / "run", records)
    again = replace(chain()[3], measured_again=1)
    Ledger(folder / "ledger.jsonl").append(again)
    assert MARK not in render([folder], "md")
    (run,) = open_runs([folder])
    assert run.verdict.row["stage"] == "quantize"
    assert len(run.records) == 4
