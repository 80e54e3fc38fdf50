import json
import multiprocessing
from dataclasses import replace

import numpy as np
import pytest

from optkit.core import ledger
from optkit.core.errors import UserError
from optkit.core.ledger import Ledger
from tests.conftest import make_record


def test_records_come_back_as_they_were(tmp_path):
    book = Ledger(tmp_path / "ledger.jsonl")
    written = [make_record(variant=f"v{n}", step=n) for n in range(3)]
    for record in written:
        book.append(record)
    assert book.records() == written
    assert ledger.read(tmp_path) == written


def test_a_kill_at_any_byte_loses_at_most_the_last_record(tmp_path):
    path = tmp_path / "ledger.jsonl"
    book = Ledger(path)
    first, second, third = (make_record(variant=f"v{n}", step=n) for n in range(3))
    book.append(first)
    whole = path.stat().st_size
    book.append(second)
    text = path.read_bytes()
    for kept in range(whole, len(text)):
        path.write_bytes(text[:kept])
        assert book.records() == [first]
        book.append(third)
        assert book.records() == [first, third]


def test_a_torn_first_line_leaves_an_empty_ledger(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b'{"run": "x')
    Ledger(path).append(make_record())
    assert Ledger(path).records() == [make_record()]


def test_the_same_record_written_twice_counts_once():
    one, two = make_record(variant="a"), make_record(variant="b", step=1)
    assert ledger.unique([one, two, one]) == [one, two]


def test_a_record_is_not_appended_twice(tmp_path):
    book = Ledger(tmp_path / "ledger.jsonl")
    assert book.append(make_record(variant="a"))
    assert not book.append(make_record(variant="a"))
    assert book.append(make_record(variant="b", step=1))
    assert [r.variant for r in book.records()] == ["a", "b"]


def _append(path, names):
    for name in names:
        Ledger(path).append(make_record(variant=name))


@pytest.mark.slow
def test_processes_that_append_at_once_lose_nothing(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    path = tmp_path / "ledger.jsonl"
    names = [[f"{who}{n % 8}" for n in range(16)] for who in "ab"]
    processes = [spawn.Process(target=_append, args=(path, [*own, "shared"])) for own in names]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    found = [r.variant for r in ledger.read(path)]
    assert sorted(found) == sorted({*names[0], *names[1], "shared"})


def test_no_ledger_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="no ledger at"):
        ledger.read(tmp_path)


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "ledger.jsonl"
    Ledger(path).append(make_record())
    path.write_bytes(b"{}\n" + path.read_bytes())
    with pytest.raises(UserError, match=r"ledger\.jsonl:1"):
        ledger.read(path)


def test_another_schema_is_refused(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_text(json.dumps(make_record().to_json() | {"schema": 99}) + "\n")
    with pytest.raises(UserError, match="schema 99"):
        ledger.read(path)


def test_not_a_number_is_never_written(tmp_path):
    record = make_record()
    with pytest.raises(ValueError, match="JSON"):
        Ledger(tmp_path / "l").append(replace(record, facts={"loss": float("nan")}))


def test_an_older_schema_is_read_and_named(tmp_path, caplog):
    older = make_record().to_json() | {"schema": 1}
    del older["chain"], older["control"]
    (tmp_path / "ledger.jsonl").write_text(json.dumps(older) + "\n")
    assert ledger.read(tmp_path) == [make_record()]
    assert "written with schema 1" in caplog.text


def _figures(record):
    return {(m.name, m.conditions.get("engine"), m.conditions.get("batch_size")): m.value for m in record.measurements}


def test_a_variant_that_was_measured_again_has_its_newest_figures_and_keeps_the_others(tmp_path):
    book = ledger.Ledger(tmp_path / "ledger.jsonl")
    first = make_record(batch_size=1, correct=np.array([True, False]))
    other = make_record(batch_size=8, correct=np.array([True, False]))
    first = replace(first, measurements=[*first.measurements, *other.measurements[3:]])
    again = replace(make_record(batch_size=1, correct=np.array([True, True])), measured_again=1)
    for record in (first, again):
        book.append(record)
    assert len(ledger.read(tmp_path)) == 2
    (found,) = ledger.unique(ledger.read(tmp_path))
    accuracies = {key: value for key, value in _figures(found).items() if key[0] == "accuracy"}
    assert accuracies == {("accuracy", "eager", 1): 1.0, ("accuracy", "eager", 8): 0.5}
    assert [m.value for m in found.measurements if m.name == "params"] == [10]
    # in whatever order they were written, and however often
    assert ledger.unique([again, first, again, first]) == [found]


def test_latencies_of_before_stay_below_the_newest(tmp_path):
    slow, fast = (make_record(series={("variant", "eager"): np.full((4, 5), ms)}) for ms in (2.0, 1.0))
    (found,) = ledger.unique([slow, replace(fast, measured_again=1)])
    assert found.find("latency", engine="eager").value == 1.0
    assert [m.value for m in found.measurements if m.name == "latency"] == [1.0, 2.0]


def test_figures_of_another_machine_do_not_stand_beside_the_newest():
    here, there = ({"cpu": {"name": name, "cores": 2}, "threads": 2} for name in ("A", "B"))
    first = replace(make_record(batch_size=8), environment=here)
    again = replace(make_record(batch_size=1), environment=there, measured_again=1)
    (found,) = ledger.unique([first, again])
    assert found == again


def test_the_reference_is_what_is_marked_as_such():
    record = make_record(series={("variant", "eager"): np.ones((4, 5)), ("baseline", "plain"): np.ones((4, 5))})
    assert record.reference == "eager"
    marked = [
        replace(m, conditions=m.conditions | {"reference": True}) if m.conditions.get("engine") == "plain" else m
        for m in record.measurements
    ]
    assert replace(record, measurements=marked).reference == "plain"
