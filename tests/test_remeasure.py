"""The variants of a run measured later or again: on another machine, at other batch sizes, in a copy of its folder."""

import json
import shutil
from dataclasses import replace

import pytest

from optkit.core import ledger
from optkit.core.errors import UserError
from optkit.core.setting import Setting
from optkit.engines import Eager, Inductor
from optkit.measure import Measure
from optkit.pipeline import run
from optkit.prune import MagnitudePruning
from optkit.recipe.plan import make_plan
from optkit.recipe.recipe import Recipe
from optkit.remeasure import measure_again
from optkit.report import read_rows, summarize, write_report
from optkit.report.rows import rows
from optkit.report.selection import changed_keys, select
from optkit.training import Train, Trainer
from tests.report.runs import busy, chain, sweep, write_run
from tests.test_cli import RECIPE


@pytest.fixture(scope="module")
def recipe(digits, tmp_path_factory):
    return Recipe(
        name="small",
        model={"_target_": "optkit.models.MLP", "widths": [32], "num_classes": None, "input_shape": None},
        task=digits,
        chain=["train", "mask"],
        stages={"train": Train(Trainer(epochs=1, batch_size=64)), "mask": MagnitudePruning(0.5)},
        engines={"eager": Eager()},
        reference=Eager(),
        measure=Measure(batch_sizes=[16], seconds=0.01, retries=0, memory=False),
        threads=1,
        out=str(tmp_path_factory.mktemp("runs")),
        text="name: small\n",
    )


@pytest.fixture(scope="module")
def finished(recipe):
    return run(make_plan(recipe)).folder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of a run's folder, without its store."""
    return shutil.copytree(finished, tmp_path / "copied")


@pytest.fixture(scope="module")
def waiting(recipe, finished, tmp_path_factory):
    """The same recipe, whose run makes its variants only, in a folder of its own; they are in the store already."""
    measure = replace(recipe.measure, when="later")
    return replace(recipe, measure=measure, out=str(tmp_path_factory.mktemp("later")), store=f"{recipe.out}/store")


@pytest.fixture(scope="module")
def made(waiting):
    return run(make_plan(waiting)).folder


@pytest.fixture
def unmeasured(made, tmp_path):
    """A copy of the folder of a run that is not measured."""
    return shutil.copytree(made, tmp_path / "copied")


def test_the_run_is_the_same_and_says_what_is_not_measured_yet(recipe, waiting, made):
    assert make_plan(recipe).run == make_plan(waiting).run == made.name
    assert [(r.stage, r.measurements, "peaks" in r.environment) for r in ledger.unmeasured(made)] == [
        ("train", [], False), ("mask", [], False)
    ]  # fmt: skip
    assert not (made / "ledger.jsonl").exists()
    line = f"Not measured yet: 0-train, 1-mask. Measure them: optkit measure {made}"
    assert summarize(made).splitlines() == [f"run folder: {made}", line]
    write_report(made)
    assert (made / "report.md").read_text() == f"{line}\n"
    with pytest.raises(UserError, match=rf"nothing of this run is measured yet \(optkit measure {made}\)"):
        read_rows([made])
    with pytest.raises(UserError, match="is not measured yet"):
        ledger.read(made)
    # all that it makes is made
    assert not run(make_plan(waiting)).worked


def test_a_copy_is_measured_and_has_the_rows_of_a_run_that_measures(waiting, unmeasured, finished):
    measure_again(unmeasured, waiting, select(unmeasured, None))
    assert not (unmeasured / "unmeasured.jsonl").exists()
    records = ledger.read(unmeasured)
    assert [(r.stage, r.measured_again) for r in records] == [("train", 0), ("mask", 0)]
    for ours, theirs in zip(records, ledger.read(finished), strict=True):
        assert (ours.variant, ours.facts.keys(), ours.data) == (theirs.variant, theirs.facts.keys(), theirs.data)
        assert [(m.name, m.conditions.get("of")) for m in ours.measurements] == [
            (m.name, m.conditions.get("of")) for m in theirs.measurements
        ]
        assert [m.raw for m in ours.primary] == [m.raw for m in theirs.primary]
    # from here on it is a run like any other
    assert select(unmeasured, None) is None
    with pytest.raises(UserError, match="all of this run is measured"):
        select(unmeasured, "unmeasured")


def test_the_rows_that_are_measured_are_shown_and_the_others_named(waiting, unmeasured, caplog):
    measure_again(unmeasured, waiting, select(unmeasured, "train"))
    rows = read_rows([unmeasured])
    assert {row["stage"] for row in rows} == {"train"}
    assert f"Not measured yet: 1-mask. Measure them: optkit measure {unmeasured}" in caplog.text
    measure_again(unmeasured, waiting, select(unmeasured, None))
    assert {row["stage"] for row in read_rows([unmeasured])} == {"train", "mask"}


def test_what_another_run_measured_of_a_variant_is_taken_over(waiting, unmeasured, finished):
    baseline, other = ledger.read(finished)
    measure_again(unmeasured, waiting, {(1, other.variant): None}, once=True, known=[baseline])
    ours, last = ledger.read(unmeasured)
    assert (ours.variant, ours.time, ours.measurements) == (baseline.variant, baseline.time, baseline.measurements)
    assert last.variant == other.variant
    assert last.time >= baseline.time
    assert rows([ours, last])[-1]["speedup"] is not None


@pytest.mark.parametrize("difference", ["threads", "split", "data"])
def test_what_was_measured_otherwise_is_not_taken_over(waiting, unmeasured, finished, difference):
    baseline, other = ledger.read(finished)
    elsewhere = {
        "threads": replace(baseline, environment=baseline.environment | {"threads": 3}),
        "data": replace(baseline, data=baseline.data | {"fingerprint": "another"}),
        "split": replace(
            baseline,
            measurements=[
                replace(m, conditions=m.conditions | {"split": "validation"}) if m.quality else m
                for m in baseline.measurements
            ],
        ),
    }[difference]
    measure_again(unmeasured, waiting, {(1, other.variant): None}, once=True, known=[replace(elsewhere, time="before")])
    assert ledger.read(unmeasured)[0].time != "before"


def test_a_variant_may_be_timed_beside_the_baseline_on_the_reference_alone(waiting, unmeasured):
    two = replace(waiting, engines={"eager": Eager(), "other": Eager()})
    measure_again(unmeasured, two, same_engine=False)
    latencies = [m.conditions for m in ledger.read(unmeasured)[1].measurements if m.name == "latency"]
    assert {place["engine"] for place in latencies if place["of"] == "variant"} == {"eager", "other"}
    assert {place["engine"] for place in latencies if place["of"] == "baseline"} == {"eager"}
    found = [row for row in read_rows([unmeasured]) if row["step"] == 1]
    assert {row["engine"] for row in found} == {"eager", "other"}
    assert all(row["speedup"] is not None for row in found)
    assert [row["speedup_same_engine"] is None for row in found] == [row["engine"] == "other" for row in found]


def test_the_same_recipe_measures_in_its_own_folder(waiting, made):
    done = run(make_plan(replace(waiting, measure=replace(waiting.measure, when="now"))))
    assert (done.folder, done.worked, done.made) == (made, True, 0)
    assert len(ledger.read(made)) == 2
    assert not (made / "unmeasured.jsonl").exists()


def test_when_is_now_or_later():
    with pytest.raises(UserError, match="when: no when 'latr' \\(did you mean 'later'"):
        Measure(when="latr")


def _answers(records):
    return {
        (r.stage, m.conditions["engine"], m.conditions["batch_size"]): m.raw
        for r in records
        for m in r.measurements
        if m.name == "accuracy"
    }


@pytest.mark.slow
def test_a_run_is_measured_again_from_its_folder_alone(folder, recipe):
    before = (folder / "ledger.jsonl").read_bytes()
    measure_again(folder, recipe)
    assert (folder / "ledger.jsonl").read_bytes().startswith(before)
    first, again = ledger.read(folder)[:2], ledger.read(folder)[2:]
    assert [(r.step, r.stage, r.measured_again) for r in again] == [(0, "train", 1), (1, "mask", 1)]
    assert _answers(again) == _answers(first)
    newest = [next(m for m in r.measurements if m.name == "latency") for r in again]
    rows = read_rows([folder])
    assert [row["latency_p50_ms"] for row in rows] == [m.value for m in newest]
    # in the rounds of the measurement, as in a run
    assert {m.conditions["of"] for m in again[1].measurements if m.name == "latency"} == {"variant", "baseline"}
    assert all(row["speedup"] is not None and row["quality_delta"] is not None for row in rows)
    measure_again(folder, recipe)
    assert [r.measured_again for r in ledger.read(folder)] == [0, 0, 1, 1, 2, 2]


@pytest.mark.slow
def test_one_variant_at_another_batch_size_brings_the_baseline_there(folder, recipe):
    larger = replace(recipe, measure=replace(recipe.measure, batch_sizes=[8]))
    measure_again(folder, larger, select(folder, "mask"))
    rows = {(r["stage"], r["batch_size"]): r for r in read_rows([folder])}
    assert rows.keys() == {("train", 16), ("mask", 16), ("train", 8), ("mask", 8)}
    assert rows["mask", 8]["quality_delta"] is not None
    measure_again(folder, recipe, {(1, rows["mask", 8]["variant"]): {Setting(8)}})
    last = ledger.read(folder)[-1]
    assert {m.conditions["batch_size"] for m in last.measurements if m.name == "accuracy"} == {8}


@pytest.mark.slow
def test_on_another_machine_the_whole_run_is_measured(folder, recipe, monkeypatch):
    there = {"cpu": {"name": "Another", "cores": 64, "isa": []}, "threads": 1, "packages": {}, "gpu": None}
    monkeypatch.setattr("optkit.remeasure.environment", lambda threads, engine_packages: dict(there))
    with pytest.raises(UserError, match="--rows all: rows of two machines"):
        measure_again(folder, recipe, select(folder, "mask"))
    measure_again(folder, replace(recipe, measure=replace(recipe.measure, batch_sizes=[8])))
    # figures of the first machine stay in the ledger, and out of the report
    assert {row["batch_size"] for row in read_rows([folder])} == {8}


def test_what_is_not_the_runs_is_refused_before_any_work(folder, recipe, digits, tmp_path):
    text = (folder / "ledger.jsonl").read_bytes()
    with pytest.raises(UserError, match="other data"):
        measure_again(folder, replace(recipe, task=type(digits)(image_size=8, crop=1, limit=64)))
    with pytest.raises(UserError, match="'eager' is what the run calls"):
        measure_again(folder, replace(recipe, engines={"eager": Inductor()}))
    shutil.rmtree(folder / "variants/1-mask")
    with pytest.raises(UserError, match="no variant at"):
        measure_again(folder, recipe)
    shutil.copytree(folder / "variants/0-train", folder / "variants/1-mask")
    with pytest.raises(UserError, match="the ledger says"):
        measure_again(folder, recipe)
    assert (folder / "ledger.jsonl").read_bytes() == text


@pytest.mark.slow
def test_one_process_of_torchrun_is_refused(folder, recipe, monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="WORLD_SIZE is 2"):
        measure_again(folder, recipe)


def test_rows_are_chosen_by_mark_or_by_name(tmp_path):
    folder = write_run(tmp_path / "run", busy(sweep()))
    assert select(folder, "all") is None
    marked = {(3, "v3"): {Setting(1), Setting(8), Setting(32)}}
    assert select(folder, "marked") == marked
    assert select(folder, "marked", {Setting(8), Setting(64)}) == {(3, "v3"): {Setting(8)}}
    assert select(folder, "quantize,1-prune") == {(3, "v3"): None, (1, "v1"): None}
    with pytest.raises(UserError, match="no variant 'quantise'"):
        select(folder, "quantise")
    with pytest.raises(UserError, match="no row of this run is marked"):
        select(write_run(tmp_path / "quiet", chain()), "marked")


def test_only_what_measures_may_be_overridden(tmp_path):
    yaml = "name: r\nstages: {{prune: {{amount: {0}}}}}\nengines: {{eager: {{a: {1}}}}}\nmeasure: {{seconds: {2}}}\n"
    (tmp_path / "recipe.yaml").write_text(yaml.format(0.5, 1, 2.0))
    assert changed_keys(tmp_path, yaml.format(0.5, 1, 3.0)) == {"measure.seconds"}
    assert changed_keys(tmp_path, yaml.format(0.5, 1, 2.0).replace("eager", "other")) == {
        "engines.eager.a",
        "engines.other.a",
    }
    with pytest.raises(UserError, match=r"stages\.prune\.amount: optkit measure makes no variants"):
        changed_keys(tmp_path, yaml.format(0.6, 1, 2.0))
    with pytest.raises(UserError, match=r"engines\.eager\.a: the run's rows on this engine"):
        changed_keys(tmp_path, yaml.format(0.5, 2, 2.0))


@pytest.mark.slow
def test_the_command_measures_a_copy_of_a_run_and_says_what_it_shows_now(command_here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test.yaml").write_text(RECIPE)
    done = command_here("run", "test.yaml", "~engines.inductor")
    assert any(line.startswith("run folder: runs/test-") for line in done.stdout.splitlines())
    shutil.move(next((tmp_path / "runs").glob("test-*")), tmp_path / "copied")
    shutil.rmtree(tmp_path / "runs")
    done = command_here("measure", "copied", "measure.batch_sizes=[2,4]", "measure.seconds=0.02")
    assert "run folder: copied" in done.stdout
    assert {p.name for p in tmp_path.iterdir()} == {"test.yaml", "copied"}
    rows = json.loads((tmp_path / "copied/report.json").read_text())
    assert [(r["stage"], r["batch_size"]) for r in rows] == [("train", 2), ("mask", 2), ("train", 4), ("mask", 4)]
    assert len(ledger.read(tmp_path / "copied")) == 4
    for arguments, said in (
        (["copied", "stages.mask.amount=0.3"], "stages.mask.amount: optkit measure makes no variants"),
        (["copied", "--rows", "msak"], "no variant 'msak'"),
        (["nowhere"], "no ledger at nowhere"),
    ):
        done = command_here("measure", *arguments)
        assert isinstance(done.exception, UserError)
        assert said in str(done.exception)
    assert len(ledger.read(tmp_path / "copied")) == 4
