"""Reports of runs whose metric is no accuracy: its own unit, its own direction, several metrics."""

import json
from dataclasses import replace

import numpy as np
import pytest

from optkit.core.records import Measurement, Quality, Record, pack_values, unpack_values
from optkit.report import render
from optkit.report.page.runs import open_runs
from optkit.report.page.step_figures import step_figures
from optkit.report.page.verdict import keeps_quality, verdict
from optkit.report.paired import TOLERANCES, losses_within
from optkit.report.plot import on_front
from optkit.report.rows import rows
from optkit.report.written import Written, common
from tests.report.runs import chain, write_run

MAE = Quality("error", higher_is_better=False, primary=True)
ERRORS = np.random.default_rng(0).gamma(2.0, 1.0, 1000)  # of an example, in years; 2 on average
WORSE = {0: 1.0, 1: 1.4, 2: 0.9995, 3: 1.02}  # by step


def _of_errors(record):
    """The record, with a mean absolute error in years in place of accuracy, and a share beside it."""
    values = ERRORS * WORSE[record.step]
    found = []
    for m in record.measurements:
        if m.name == "accuracy":
            mae = Measurement(
                "mae", float(values.mean()), "years", [1.9, 2.1], 1000, m.conditions, pack_values(values), MAE
            )
            share = Quality("share", higher_is_better=True, primary=False)
            found += [mae, replace(m, name="within_a_year", quality=share)]
        else:
            found.append(m)
    return replace(record, measurements=found)


@pytest.fixture(scope="module")
def records():
    return [_of_errors(record) for record in chain()]


def test_values_are_kept_as_bits_or_as_compressed_floats():
    bits = pack_values(np.array([1.0, 0.0, 1.0]))
    assert set(bits) == {"n", "bits"}
    assert unpack_values(bits).tolist() == [True, False, True]
    numbers = pack_values(ERRORS)
    assert set(numbers) == {"n", "float32"}
    np.testing.assert_allclose(unpack_values(numbers), ERRORS, rtol=1e-6)


def test_a_record_reads_back_and_an_older_one_is_of_accuracy(records):
    again = Record.from_json(json.loads(json.dumps(records[0].to_json())))
    assert [m.quality for m in again.primary] == [MAE, MAE]
    older = chain()[0].to_json() | {"schema": 3}
    for measurement in older["measurements"]:
        del measurement["quality"]
    assert [m.name for m in Record.from_json(older).primary] == ["accuracy", "accuracy"]


def test_rows_are_of_the_first_metric_and_name_the_others(records):
    row = next(r for r in rows(records) if (r["step"], r["engine"]) == (1, "eager"))
    assert (row["metric"], row["unit"], row["higher_is_better"]) == ("mae", "years", False)
    assert row["quality"] == pytest.approx(1.4 * ERRORS.mean())
    assert row["quality_delta"] == pytest.approx(0.4 * ERRORS.mean(), rel=1e-5)
    low, high = row["quality_delta_ci"]
    assert low < 0.4 * ERRORS.mean() < high
    assert row["quality_delta_counts"] is None
    other = row["metrics"]["within_a_year"]
    assert (other["value"], other["delta"]) == (0.55, pytest.approx(-0.4))


def test_a_lower_error_keeps_and_losses_are_relative_to_the_baseline(records):
    by = {(r["step"], r["engine"]): r for r in rows(records)}
    assert keeps_quality(by[2, "eager"], 0.005)
    assert not keeps_quality(by[1, "eager"], TOLERANCES[-1])
    assert not keeps_quality(by[3, "inductor"])  # 2% worse, and surely so: the errors are paired
    assert keeps_quality(by[3, "inductor"], 0.05)
    assert not keeps_quality(by[3, "inductor"], 0.01)
    better = replace(records[1], measurements=_of_errors(replace(chain()[1], step=0)).measurements)
    row = next(r for r in rows([records[0], better]) if r["step"] == 1)
    assert keeps_quality(row)


@pytest.mark.parametrize("kind", ["share", "any"])
def test_errors_that_are_0_or_1_are_losses_where_they_are_1(kind):
    about = Quality(kind, higher_is_better=False, primary=True)

    def measured(errors):
        wrong = (np.arange(1000) < errors).astype(float)
        return Measurement("wrong", float(wrong.mean()), "1", [0, 1], 1000, {}, pack_values(wrong), about)

    assert losses_within(measured(300), measured(10))["0.05"] > 0.999
    assert losses_within(measured(10), measured(300))["0.005"] < 1e-6


def test_the_verdict_and_the_page_speak_its_unit(records, tmp_path):
    judged = verdict(rows(records))
    assert "Its mae is better than the baseline's: " in judged.sentence
    assert " years [" in judged.sentence
    assert "points" not in judged.sentence + judged.chain
    folder = write_run(tmp_path / "run", records)
    _, quality = step_figures(open_runs([folder])[0])
    assert quality.table.headers == ["step", "mae, years", "change, years"]
    page = render([folder], "html")
    assert "accuracy" not in page[page.index("<body") :].split("<script")[0].lower()
    text = render([folder], "md")
    assert "| mae, years | change, years |" in text


def test_the_front_takes_lower_errors_for_better():
    of = {"metric": "mae", "unit": "1", "metric_kind": "error", "higher_is_better": False}
    points = [(1.0, 2.0), (2.0, 1.0), (2.0, 3.0)]
    assert on_front([of | {"latency_p50_ms": x, "quality": y} for x, y in points]) == [True, True, False]


def test_rows_of_several_metrics_say_in_each_cell_which_it_is(records, tmp_path):
    both = [*rows(records), *rows([replace(r, run="other") for r in chain()])]
    assert common(both) is None
    folders = [
        write_run(tmp_path / "a", records),
        write_run(tmp_path / "b", [replace(r, run="other") for r in chain()]),
    ]
    text = render(folders, "md")
    assert "mae, years: " in text
    assert "accuracy, %: " in text


def test_how_metrics_are_written():
    share, error, plain = Written(), Written("mae", "years", "error", False), Written("r2", "1", "any")
    assert (share.title, share.value(0.975), share.signed(-0.012)) == ("accuracy, %", "97.5%", "-1.2")
    assert (error.title, error.value(2.34567), error.change_title) == ("mae, years", "2.346 years", "change, years")
    assert (plain.title, plain.value(0.5), plain.change_unit) == ("r2", "0.5", "")
    assert error.gains([-0.2, 0.1]) == (-0.1, 0.2)
