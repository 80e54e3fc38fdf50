"""Two ledgers compared record by record: what is equal, what differs, and what decides."""

import copy
from dataclasses import replace

import numpy as np
import pytest

from optkit.core.manifest import Change, changes
from optkit.core.records import ANSWERS, Measurement, pack_classes, pack_values
from optkit.report.reproduced import DIFFERS, EQUAL, NOT_COMPARED, compare_runs
from optkit.report.reproduced_table import describe_changes, summary, verdict
from tests.report.runs import answers, busy, chain, write_run

ELSEWHERE = Change("machine", "machine", "aaaaaaaa", "bbbbbbbb")


@pytest.fixture
def compared(tmp_path):
    """Compares the chain of four with what a function makes of it."""

    def compare(change=lambda records: records, changed=()):
        first = write_run(tmp_path / "first", chain())
        second = write_run(tmp_path / "second", change(copy.deepcopy(chain())))
        return compare_runs(first, second, list(changed))

    return compare


def with_measurement(records, place, name, **fields):
    """The same records, with other fields in the measurements of one name of one record."""
    own = [replace(m, **fields) if m.name == name else m for m in records[place].measurements]
    records[place] = replace(records[place], measurements=own)
    return records


def found(comparison, variant, what):
    return [one for one in comparison.compared if (one.variant, one.what) == (variant, what)]


def test_the_same_records_are_equal(compared):
    comparison = compared()
    assert comparison.equal
    assert {one.verdict for one in comparison.compared if one.what != "weights"} == {EQUAL}
    assert verdict(comparison).startswith("reproduced: all answers of 7 measurements")


def test_one_other_answer_decides_and_is_counted(compared):
    other = answers(949)
    comparison = compared(lambda records: with_measurement(records, 0, "accuracy", raw=pack_values(other), value=0.949))
    assert not comparison.equal
    assert [one.note for one in found(comparison, "baseline", "accuracy")] == ["1 of 1000 examples"] * 2
    assert "not reproduced" in verdict(comparison)


def test_another_wrong_class_differs_though_it_is_as_wrong(tmp_path):
    runs = []
    for name, last in (("first", 7), ("second", 8)):
        records, where = chain(), {"engine": "eager", "batch_size": 8}
        own = Measurement(ANSWERS, None, n=3, conditions=where, raw=pack_classes(np.array([1, 2, last])))
        records[0] = replace(records[0], measurements=[*records[0].measurements, own])
        runs.append(write_run(tmp_path / name, records))
    comparison = compare_runs(*runs, [])
    assert [(one.verdict, one.note) for one in found(comparison, "baseline", ANSWERS)] == [(DIFFERS, "1 of 3 examples")]
    assert not comparison.equal


def test_continuous_values_say_how_far_they_are_apart(tmp_path):
    values = np.linspace(1.5, 2.5, 1000)
    runs = []
    for name, shift in (("first", 0.0), ("second", 0.25)):
        moved = values.copy()
        moved[3] += shift
        records = with_measurement(chain(), 1, "accuracy", raw=pack_values(moved))
        runs.append(write_run(tmp_path / name, records))
    (one, _) = found(compare_runs(*runs, []), "prune", "accuracy")
    assert (one.verdict, one.note) == (DIFFERS, "1 of 1000 examples, by 0.25 at most")


def test_a_cost_that_follows_from_the_variant_must_be_exact(compared):
    comparison = compared(lambda records: with_measurement(records, 1, "params", value=11))
    assert [one.verdict for one in found(comparison, "prune", "params")] == [DIFFERS]
    assert not comparison.equal


@pytest.mark.parametrize(("size", "equal"), [(0.503, True), (0.56, False)])
def test_a_file_size_may_differ_by_its_dates(compared, size, equal):
    assert compared(lambda records: with_measurement(records, 1, "size", value=size)).equal == equal


def test_a_latency_that_drifted_is_named_and_does_not_decide(compared):
    comparison = compared(lambda records: with_measurement(records, 0, "latency", ci=[7.9, 8.1], value=8.0))
    assert [one.verdict for one in found(comparison, "baseline", "latency")] == [DIFFERS, DIFFERS]
    assert comparison.equal


def test_a_speedup_outside_the_interval_decides(compared):
    def slower(records):
        own = [
            replace(m, raw=(np.array(m.raw) * 2).tolist(), value=m.value * 2)
            if m.name == "latency" and m.conditions["of"] == "variant"
            else m
            for m in records[1].measurements
        ]
        records[1] = replace(records[1], measurements=own)
        return records

    comparison = compared(slower)
    assert {one.verdict for one in found(comparison, "prune", "speedup")} == {DIFFERS}
    assert not comparison.equal


def test_timings_of_another_machine_are_not_compared(compared):
    comparison = compared(changed=[ELSEWHERE])
    assert {one.verdict for one in found(comparison, "prune", "latency")} == {NOT_COMPARED}
    assert comparison.equal


def test_timings_with_other_threads_are_not_compared(compared):
    def threads(records):
        return [replace(r, environment=r.environment | {"threads": 7}) for r in records]

    comparison = compared(threads)
    for what in ("latency", "speedup"):
        assert {one.verdict for one in found(comparison, "prune", what)} == {NOT_COMPARED}


def test_timings_that_cannot_be_trusted_are_not_compared(compared):
    comparison = compared(lambda records: busy(records))
    assert {one.verdict for one in found(comparison, "quantize", "speedup")} == {NOT_COMPARED}
    assert "a timing that cannot be trusted" in verdict(comparison)


def test_a_variant_that_was_not_made_again_is_named(compared):
    comparison = compared(lambda records: records[:-1])
    assert comparison.only_first == ["quantize"]
    assert not comparison.equal


def test_nothing_compared_is_not_equal(compared):
    def other_engine(records):
        return [
            replace(r, measurements=[m for m in r.measurements if m.name not in ("accuracy", "latency")])
            for r in records
        ]

    comparison = compared(other_engine)
    assert not comparison.equal
    assert "not reproduced: these answers are missing: baseline on eager" in verdict(comparison)


def test_answers_that_are_missing_in_one_place_are_named(compared):
    def without_some(records):
        own = records[1]
        kept = [m for m in own.measurements if m.name != "accuracy" or m.conditions["engine"] == "eager"]
        return [records[0], replace(own, measurements=kept), *records[2:]]

    comparison = compared(without_some)
    assert not comparison.equal
    assert verdict(comparison).startswith("not reproduced: these answers are missing: ")


def test_the_summary_names_changes_and_differences(compared, tmp_path):
    changed = [Change("package", "torch", "2.13.0", "2.14.0"), Change("recipe", "seed", 0, 1)]
    comparison = compared(lambda records: with_measurement(records, 1, "params", value=11), changed)
    said = summary(comparison, tmp_path / "first", tmp_path / "second")
    assert "changed: recipe seed: 0 > 1" in said
    assert "changed: package torch: 2.13.0 > 2.14.0" in said
    assert "differs: prune: params 10 > 11" in said


def test_of_many_packages_those_that_optkit_builds_on_come_first():
    many = [Change("package", f"a{n:02}", "1", "2") for n in range(20)] + [Change("package", "torch", "1", "2")]
    lines = describe_changes(many)
    assert lines[0] == "changed: package torch: 1 > 2"
    assert lines[-1] == "changed: 9 more packages (--format json names them)"


def manifest(**fields):
    whole = {
        "recipe": {"seed": 0, "task": {"path": {"$input": "task.path"}}, "tracker": {"uri": "x"}},
        "inputs": {"task": {"fingerprint": "f"}, "task.path": {"path": "/data"}},
        "optkit": {"version": "1", "source": "s"},
        "environment": {"threads": 2},
        "installed": {"torch": "2.13"},
    }
    return whole | fields


def test_paths_trackers_and_commits_of_the_same_source_are_no_changes():
    moved = manifest(
        inputs={"task": {"fingerprint": "f"}, "task.path": {"path": "/elsewhere"}},
        optkit={"version": "2", "source": "s"},
        recipe=manifest()["recipe"] | {"tracker": None},
    )
    assert changes(manifest(), moved) == []


@pytest.mark.parametrize(
    ("field", "value", "kind", "what"),
    [
        ("recipe", {"seed": 1, "task": {"path": {"$input": "task.path"}}}, "recipe", "seed"),
        ("inputs", {"task": {"fingerprint": "g"}, "task.path": {"path": "/data"}}, "data", "task"),
        ("optkit", {"version": "1", "source": "t"}, "optkit", "optkit"),
        ("environment", {"threads": 4}, "machine", "threads"),
        ("installed", {"torch": "2.14"}, "package", "torch"),
        ("installed", {"torch": "2.13", "new": "1"}, "package", "new"),
    ],
)
def test_each_change_has_its_kind_and_its_name(field, value, kind, what):
    (change,) = changes(manifest(), manifest(**{field: value}))
    assert (change.kind, change.what) == (kind, what)


def test_what_an_older_run_does_not_say_is_no_change():
    old = {"partial": True, "optkit": {"version": "1"}, "installed": {"torch": "2.13"}, "environment": {"threads": 2}}
    assert changes(old, manifest(installed={"torch": "2.13", "new": "1"})) == []
