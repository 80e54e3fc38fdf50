"""Reports of several runs of one recipe: the keys in which they differ, and means over one of them."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from optkit.core.errors import UserError
from optkit.core.statistics import mean_over_seeds, weighted_metric
from optkit.report import frame, read_rows, render
from optkit.report.page.runs import open_runs
from optkit.report.page.sweep_figures import sweep_figures
from optkit.report.sweep import differing_keys, open_sweep, over, short_names
from tests.conftest import make_record
from tests.report.runs import answers, busy, series, write_run


def _run(seed, amount, busy_prune=False):
    """A baseline and a pruned variant, which are right on other examples under another seed."""
    found = []
    for step, (stage, right, ms) in enumerate((("train", 900 + seed, 4.0), ("prune", 880 + 2 * seed, 4.0 - amount))):
        record = make_record(
            variant=f"v{step}-{seed}-{amount}", parent=f"v0-{seed}-{amount}" if step else None, step=step, stage=stage,
            batch_size=8, correct=np.roll(answers(right), 7 * seed), baseline=f"v0-{seed}-{amount}",
            series=series({"eager": ms}, 4.0 if step else None, step),
        )  # fmt: skip
        found.append(replace(record, run=f"run-{seed}-{amount}"))
    return busy(found) if busy_prune else found


@pytest.fixture
def sweep(tmp_path):
    for seed in (0, 1, 2):
        for amount in (0.5, 1.0):
            recipe = f"seed: {seed}\nout: /elsewhere/{seed}\nstages:\n  prune:\n    amount: {amount}\n    steps: 1\n"
            write_run(tmp_path / f"r-{seed}-{amount}", _run(seed, amount, (seed, amount) == (2, 1.0)), recipe)
    return tmp_path


def test_keys_that_differ_and_as_much_of_their_names_as_tells_them_apart():
    recipes = [{"a.lr": 1, "b.lr": 1, "c": 5}, {"a.lr": 2, "b.lr": 3, "c": 5}, {}]
    assert differing_keys(recipes) == ["a.lr", "b.lr"]
    assert short_names(["a.lr", "b.lr", "x.y.seed"]) == {"a.lr": "a.lr", "b.lr": "b.lr", "x.y.seed": "seed"}
    assert differing_keys([{"a": 1}, {"a": 1, "new": None}]) == []


def test_rows_and_every_format_say_the_keys_that_differ(sweep):
    found = read_rows([sweep])
    assert len(found) == 12
    assert {tuple(row["settings"]) for row in found} == {("seed", "stages.prune.amount")}
    lines = render([sweep], "md").splitlines()
    assert lines[0].startswith("| stage | seed | amount | engine |")
    table = list(csv.DictReader(io.StringIO(render([sweep], "csv"))))
    assert {(row["seed"], row["stages.prune.amount"]) for row in table} == {
        (str(s), str(a)) for s in (0, 1, 2) for a in (0.5, 1.0)
    }
    assert json.loads(render([sweep], "json"))[0]["settings"] == {"seed": 0, "stages.prune.amount": 0.5}
    latex = render([sweep], "latex")
    assert latex.startswith("\\begin{tabular}{lrrlr")
    assert "accuracy, \\%" in latex
    data = frame([sweep])
    assert sorted(data["stages.prune.amount"].unique()) == [0.5, 1.0]
    assert len(data) == 12


def test_one_run_has_no_such_keys(sweep):
    assert read_rows([sweep / "r-0-0.5"])[0]["settings"] == {}
    assert "seed" not in render([sweep / "r-0-0.5"], "md")


def test_means_over_seeds(sweep):
    found = {(r["step"], r["settings"]["stages.prune.amount"]): r for r in over(open_sweep([sweep]), "seed")}
    assert set(found) == {(0, 0.5), (0, 1.0), (1, 0.5), (1, 1.0)}
    row = found[1, 0.5]
    assert (row["runs"], row["values"], row["over"]) == (3, [0, 1, 2], "seed")
    pruned = np.stack([np.roll(answers(880 + 2 * seed), 7 * seed) for seed in (0, 1, 2)])
    whole = np.stack([np.roll(answers(900 + seed), 7 * seed) for seed in (0, 1, 2)])
    assert row["quality_ci"] == pytest.approx(mean_over_seeds(pruned.astype(float)).ci)
    assert row["quality_sd"] == pytest.approx(0.002)
    assert row["quality_delta"] == pytest.approx(-0.019)
    assert row["quality_delta_ci"] == pytest.approx(weighted_metric([1.0, -1.0], [pruned, whole]).ci)
    assert row["speedup"] == pytest.approx(4 / 3.5, rel=0.01)
    low, high = row["speedup_ci"]
    assert low <= row["speedup"] <= high


def test_a_timing_that_cannot_be_trusted_is_left_out_of_means(sweep):
    found = {(r["step"], r["settings"]["stages.prune.amount"]): r for r in over(open_sweep([sweep]), "seed")}
    assert (found[1, 1.0]["runs"], found[1, 1.0]["timed_runs"]) == (3, 2)
    assert found[1, 0.5]["timed_runs"] == 3


def test_every_format_shows_means(sweep):
    text = render([sweep], "md", over="seed")
    assert text.startswith("| stage | amount | engine | batch | runs |")
    assert "means over the runs that differ in seed only" in text
    assert len(list(csv.DictReader(io.StringIO(render([sweep], "csv", over="seed"))))) == 4
    assert len(json.loads(render([sweep], "json", over="seed"))) == 4
    assert "runs" in render([sweep], "latex", over="seed")
    assert "means over" in " ".join(render([sweep], "table", over="seed").split())
    assert len(frame([sweep], over="stages.prune.amount")) == 6


@pytest.mark.parametrize(
    ("key", "format_", "message"),
    [
        ("sed", "md", "do not differ in 'sed'.*did you mean 'seed'"),
        ("stages.prune.steps", "md", "do not differ in"),
        ("seed", "html", "the page shows runs"),
    ],
)
def test_what_means_cannot_be_taken_over(sweep, key, format_, message):
    with pytest.raises(UserError, match=message):
        render([sweep], format_, over=key)


def test_the_page_shows_quality_and_latency_against_each_key(sweep):
    figures = sweep_figures(open_runs([sweep]))
    assert [figure.title.partition(",")[0] for figure in figures] == [
        "Accuracy against seed", "Latency against seed", "Accuracy against amount", "Latency against amount",
    ]  # fmt: skip
    assert figures[2].table.headers[:3] == ["amount", "seed", "variant"]
    assert figures[2].table.rows[0][:4] == ["0.5", "0", "0 train", "eager"]
    assert "Against the keys in which the runs differ" in render([sweep], "html")
    assert sweep_figures(open_runs([sweep / "r-0-0.5"])) == []
