import json
from dataclasses import replace

import altair
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from optkit.core.ledger import Ledger
from optkit.core.records import Measurement
from optkit.report import read_rows, render, rows
from optkit.report.plot import on_front, save_tradeoff, steady_latency, tradeoff
from optkit.report.tables import COLUMNS, GENERATION, markdown, table
from tests.conftest import make_record
from tests.report.runs import two_lengths

KEYS = """run recipe variant parent step stage technique engine batch_size threads metric unit metric_kind higher_is_better metrics quality quality_ci quality_delta
quality_delta_ci latency_p50_ms latency_p99_ms speedup speedup_ci speedup_same_engine throughput peak_memory_mb size_mb
params macs int8_share sparsity roofline stage_cost_s""".split()


def _run():
    """A baseline at 4 ms on eager and 2 on inductor, and a variant at 2 and 0.5, right on other examples."""
    random = np.random.default_rng(0)

    def times(ms):
        return ms * (1 + 0.01 * random.random((30, 5)))

    base = np.array([True] * 80 + [False] * 20)
    other = np.array([True] * 75 + [False] * 10 + [True] * 5 + [False] * 10)
    both = {("variant", "eager"): times(4), ("variant", "inductor"): times(2)}
    faster = {
        ("variant", "eager"): times(2),
        ("variant", "inductor"): times(0.5),
        ("baseline", "eager"): times(4.4),
        ("baseline", "inductor"): times(2.2),
    }
    first = make_record(correct=base, series=both, batch_size=8)
    second = make_record(variant="v1", parent="v0", step=1, stage="prune", correct=other, series=faster, batch_size=8)
    return [first, second]


def test_rows_have_the_documented_keys_and_are_plain_json():
    found = rows(_run())
    assert len(found) == 4
    for row in found:
        assert set(KEYS) <= set(row)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_ratios_are_taken_within_the_rounds_they_were_timed_in():
    by = {(r["step"], r["engine"]): r for r in rows(_run())}
    # 4.4 / 2, not 4 / 2: the baseline was slower while the variant was timed
    assert by[1, "eager"]["speedup"] == pytest.approx(2.2, rel=0.02)
    assert by[1, "inductor"]["speedup"] == pytest.approx(8.8, rel=0.02)
    assert by[1, "inductor"]["speedup_same_engine"] == pytest.approx(4.4, rel=0.02)
    assert by[0, "inductor"]["speedup"] == pytest.approx(2.0, rel=0.02)
    assert (by[0, "eager"]["speedup"], by[0, "eager"]["speedup_ci"]) == (1.0, [1.0, 1.0])
    low, high = by[1, "eager"]["speedup_ci"]
    assert low <= by[1, "eager"]["speedup"] <= high
    assert by[1, "inductor"]["throughput"] == pytest.approx(8 / 0.5e-3, rel=0.02)


def test_accuracy_differences_are_paired():
    by = {(r["step"], r["engine"]): r for r in rows(_run())}
    assert by[1, "eager"]["quality_delta"] == pytest.approx(0.0)
    assert by[1, "eager"]["quality_delta_ci"][0] < 0 < by[1, "eager"]["quality_delta_ci"][1]
    assert by[1, "eager"]["quality_delta_p"] == pytest.approx(1.0)
    assert by[0, "eager"]["quality_delta_ci"] == [0.0, 0.0]


def test_what_was_not_measured_is_none():
    for row in rows(_run()):
        assert row["roofline"] is None
        assert row["peak_memory_mb"] is None


def test_a_record_without_its_baseline_has_no_ratios():
    found = rows([_run()[1]])
    assert all(r["quality_delta"] is None for r in found)


@pytest.fixture
def folder(tmp_path):
    for record in _run():
        Ledger(tmp_path / "ledger.jsonl").append(record)
    return tmp_path


def test_every_format_is_computed_from_the_ledger(folder):
    assert json.loads(render([folder], "json")) == read_rows([folder])
    text = render([folder], "md")
    lines = text.splitlines()
    assert lines[0].count("|") == lines[1].count("|") == len(COLUMNS) - 2 - len(GENERATION)  # no texts, no GPU
    assert sum(line.startswith("| 1 prune") for line in lines) == 2
    assert "0 train" in render([folder], "table")


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160, 200])
def test_a_table_fits_its_console(folder, width):
    with Console(width=width, record=True, file=open("/dev/null", "w")) as console:
        console.print(table(read_rows([folder]), width))
    lines = console.export_text().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    assert not any("…" in line for line in lines)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_dominates(points):
    data = [{"latency_p50_ms": x, "quality": y} for x, y in points]
    expected = [not any((a <= x and b >= y) and (a, b) != (x, y) for a, b in points) for x, y in points]
    assert on_front(data) == expected


def test_the_picture_corrects_for_drift():
    by = {(r["step"], r["engine"]): r["latency_p50_ms"] for r in steady_latency(rows(_run()))}
    assert by[0, "eager"] == pytest.approx(4.0, rel=0.02)
    # timed at 2 ms while the baseline took 4.4: at the baseline's 4 ms it would have been 1.82
    assert by[1, "eager"] == pytest.approx(4 / 2.2, rel=0.02)


def _inline_values(node):
    """The first list of inline values anywhere in a chart's specification."""
    if isinstance(node, dict):
        if isinstance(node.get("values"), list) and node["values"] and isinstance(node["values"][0], dict):
            return node["values"]
        node = list(node.values())
    found = (_inline_values(child) for child in node) if isinstance(node, list) else ()
    return next((values for values in found if values), None)


def test_the_picture_has_a_point_for_each_row_and_saves(folder):
    found = read_rows([folder])
    chart = tradeoff(found)
    assert isinstance(chart, altair.TopLevelMixin)
    data = _inline_values(chart.to_dict())
    assert {(v["variant"], v["engine"]) for v in data} == {
        ("0 train", "eager"), ("0 train", "inductor"), ("1 prune", "eager"), ("1 prune", "inductor")
    }  # fmt: skip
    for name, magic in (("t.svg", b"<svg"), ("t.png", b"\x89PNG")):
        save_tradeoff(found, folder / name)
        assert (folder / name).read_bytes().startswith(magic)


def test_the_picture_has_a_panel_for_each_length_of_texts():
    panels = tradeoff(rows(two_lengths())).to_dict()["hconcat"]
    assert [panel["title"] for panel in panels] == ["batch 8, 32 tokens", "batch 8, 64 tokens"]
    for panel, baseline_ms, last_ms in zip(panels, (4, 8), (1, 1.6), strict=True):
        latency = {(v["variant"], v["engine"]): v["latency"] for v in _inline_values(panel)}
        assert len(latency) == 7
        assert latency["0 train", "eager"] == pytest.approx(baseline_ms, rel=0.02)
        assert latency["3 quantize", "inductor"] == pytest.approx(last_ms, rel=0.02)


def test_a_row_of_texts_says_how_many_tokens():
    record = make_record()
    for measurement in record.measurements:
        measurement.conditions["sequence_length"] = 64
    found = rows([record])
    assert found[0]["sequence_length"] == 64
    assert "tokens" in markdown(found)
    assert "tokens" not in markdown(rows([make_record()]))


def test_the_roofline_is_counted_by_hand():
    record = make_record(batch_size=8, series={("variant", "eager"): np.full((30, 5), 2.0)})
    here = {"engine": "eager", "batch_size": 8, "threads": 2}
    more = [
        Measurement("precision", None, conditions=here | {"is": "fp32"}),
        Measurement("int8_share", 0.5, conditions=here),
        Measurement("numbers_moved_modelled", 10, conditions={"per": "example"}),
        Measurement("numbers_moved_modelled", 20, conditions={"per": "batch"}),
    ]
    peaks = {"fp32": 1.0, "int8": 4.0, "memory_gb_s": 0.1}
    (row,) = rows([replace(record, measurements=record.measurements + more, environment={"peaks": peaks})])
    # 100 MACs an example, 8 of them in 2 ms; half at 1, half at 4 GOP/s
    assert row["achieved_gops"] == pytest.approx(1600 / 2e-3 / 1e9)
    assert row["peak_gops"] == pytest.approx(1.6)
    assert row["roofline"] == pytest.approx(row["achieved_gops"] / 1.6)
    assert row["bytes_moved_modelled"] == pytest.approx(100 * 2.5)
    # 6.4 operations a byte at 0.1 GB/s: 0.64 GOP/s, less than the 1.6 that the processor could
    assert row["bound"] == "memory"
