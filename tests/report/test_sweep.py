import json
from dataclasses import replace

import numpy as np
import pytest

from optkit.core.errors import UserError
from optkit.core.records import Measurement
from optkit.engines import Eager
from optkit.measure import Bench, Measure
from optkit.report import read_rows, render, rows
from optkit.report.page.latency_figures import latency_figures
from optkit.report.page.runs import open_runs
from optkit.report.sweep import limit_cells, sweeps
from tests.conftest import make_record
from tests.report.runs import write_run

SIZES = {1: (1.0, 2.0), 8: (4.0, 4.5), 32: (15.0, 18.0)}  # p50 and p99, ms


def _times(p50, p99, rounds=80):
    """Calls of which 96 in 100 take p50, the rest p99."""
    calls = np.full(rounds * 5, p50)
    calls[: rounds // 5] = p99
    return calls.reshape(rounds, 5)


def _record(limit=None, sizes=SIZES, rounds=80, **options):
    merged = []
    for size, (p50, p99) in sizes.items():
        series = {("variant", "eager"): _times(p50, p99, rounds.get(size, 80) if isinstance(rounds, dict) else rounds)}
        merged += make_record(batch_size=size, series=series, **options).measurements
    if limit is not None:
        for m in merged:
            if m.name == "latency":
                m.conditions["p99_limit_ms"] = limit
    return replace(make_record(**options), measurements=merged)


def test_the_largest_measured_batch_within_the_limit_is_named():
    found = rows([_record(limit=5.0)])
    assert [r["within_p99_limit"] for r in found] == [True, True, False]
    assert {r["largest_batch_within_p99_limit"] for r in found} == {8}
    assert [r["throughput_within_p99_limit"] for r in found] == [pytest.approx(8 / 4e-3)] * 3
    assert [r["latency_p99_ms"] for r in found] == [2.0, 4.5, 18.0]
    assert limit_cells(found) == [["0 train", "eager", "8", "4.50", "2,000", ""]]


def test_the_answer_says_what_it_leaves_open():
    (all_fit,), (none_fits,) = (sweeps(rows([_record(limit=limit)])) for limit in (20.0, 1.5))
    assert all_fit.largest["batch_size"] == 32
    assert "a larger one may fit" in all_fit.remark
    assert none_fits.largest is None
    assert none_fits.remark == "no batch size measured fits"
    assert limit_cells(none_fits.rows) == [["0 train", "eager", "-", "-", "-", "no batch size measured fits"]]


def test_a_p99_of_too_few_calls_is_null_and_says_so():
    found = rows([_record(limit=20.0, rounds={32: 59})])
    assert [r["latency_calls"] for r in found] == [400, 400, 295]
    assert found[-1]["latency_p99_ms"] is None
    assert found[-1]["within_p99_limit"] is None
    (sweep,) = sweeps(found)
    assert sweep.largest["batch_size"] == 8
    assert sweep.remark == "p99 not known at batch 32 (295 calls)"
    (nothing,) = sweeps(rows([_record(limit=20.0, rounds=20)]))
    assert nothing.remark.startswith("nothing can be said; p99 not known at batch 1 (100 calls)")


def test_without_a_limit_nothing_is_said(tmp_path):
    folder = write_run(tmp_path / "run", [_record()])
    for row in read_rows([folder]):
        assert (row["p99_limit_ms"], row["within_p99_limit"], row["largest_batch_within_p99_limit"]) == (None,) * 3
    for format_ in ("md", "table"):
        assert "p99" not in render([folder], format_)


def test_a_variant_that_was_not_timed_is_named(tmp_path):
    record = _record(limit=5.0)
    kept = [m for m in record.measurements if m.name != "latency" or m.conditions["batch_size"] != 32]
    folder = write_run(tmp_path / "run", [replace(record, measurements=kept)])
    assert "p99 not known at batch 32 (not timed)" in render([folder], "md")
    assert render([folder], "html").startswith("<!doctype html>")


def test_every_format_names_it_and_a_report_may_state_another_limit(tmp_path, optkit_command):
    folder = write_run(tmp_path / "run", [_record(limit=5.0)])
    assert "| 0 train | eager | 8 | 4.50 | 2,000 |  |" in render([folder], "md").splitlines()
    assert "at most 5 ms" in " ".join(render([folder], "table").split())
    other = json.loads(render([folder], "json", p99_limit=2.5))
    assert {(r["p99_limit_ms"], r["largest_batch_within_p99_limit"]) for r in other} == {(2.5, 1)}
    assert "at most 2.5 ms" in render([folder], "html", p99_limit=2.5)
    refused = optkit_command("report", folder, "--p99-limit", "0")
    assert (refused.returncode, "--p99-limit" in refused.stderr) == (2, True)


def test_the_curve_goes_through_every_batch_size(tmp_path):
    folder = write_run(tmp_path / "run", [_record(limit=5.0)])
    curve, limits = latency_figures(open_runs([folder])[0])
    assert curve.title == "Throughput against p99 latency"
    assert [row[2:5] for row in curve.table.rows] == [
        ["1", "1.000", "2.000"],
        ["8", "4.000", "4.500"],
        ["32", "15.000", "18.000"],
    ]
    layers = curve.chart["layer"]
    assert layers[0]["encoding"]["order"]["field"] == "batch"
    assert layers[-1]["mark"]["type"] == "rule"
    assert limits.chart is None
    few = write_run(tmp_path / "few", [_record(rounds={1: 20})])
    (curve,) = latency_figures(open_runs([few])[0])
    assert curve.title == "Throughput against p50 latency"
    assert curve.table.rows[0][4] == "\N{EN DASH}"
    one = write_run(tmp_path / "one", [_record(sizes={8: (4.0, 4.5)})])
    assert latency_figures(open_runs([one])[0]) == []


def test_the_bench_writes_the_limit_beside_the_latency(digits, mlp, tmp_path):
    from optkit.core.artifact import save_artifact
    from optkit.core.variant import Variant

    artifact = save_artifact(tmp_path, Variant("v0", None, frozenset({"float"}), {}), mlp, digits.example(2))
    for limit in (None, 3.5):
        config = Measure(batch_sizes=[2], seconds=0.01, memory=False, p99_limit_ms=limit)
        bench = Bench(digits, {"eager": Eager()}, config, Eager(), 1, ("optkit",), 0)
        found = bench._latency({"eager": lambda *x: x[0]}, artifact, True, digits, 2)
        assert [m.conditions.get("p99_limit_ms") for m in found] == [limit]
    assert isinstance(found[0], Measurement)


@pytest.mark.parametrize("limit", [0, -1, True, "5", float("nan"), float("inf")])
def test_a_limit_that_is_no_time_is_refused(limit):
    with pytest.raises(UserError, match="p99_limit_ms"):
        Measure(p99_limit_ms=limit)
