import logging
from dataclasses import replace

import pytest

from optkit.core.errors import UserError
from optkit.core.ledger import Ledger
from optkit.report import read_rows
from optkit.report.comparable import cautions
from tests.conftest import make_record


def _on(processor, threads=2, run="run-1", batch_size=1):
    return replace(
        make_record(batch_size=batch_size), run=run, environment={"cpu": {"name": processor}, "threads": threads}
    )


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (_on("another", run="run-2"), "processor"),
        (_on("one", threads=8, run="run-2"), "threads"),
        (_on("one", run="run-2", batch_size=4), "batch sizes"),
        (replace(_on("one", run="run-2"), data={"fingerprint": "x"}), None),
    ],
)
def test_what_records_differ_in_is_named(other, named):
    found = cautions([_on("one"), other])
    assert ([line.split(" (")[0] for line in found] == [f"these records differ in {named}"]) == (named is not None)


def test_one_run_of_two_data_sets_is_refused():
    one, two = (replace(_on("one"), data={"fingerprint": f}) for f in "ab")
    with pytest.raises(UserError, match="different data"):
        cautions([one, two])


def test_a_report_over_two_machines_says_so(tmp_path, caplog):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        Ledger(tmp_path / name / "ledger.jsonl").append(_on(name, run=name))
    with caplog.at_level(logging.WARNING):
        read_rows([tmp_path / "one", tmp_path / "two"])
    assert "differ in processor (one, two)" in caplog.text
