import logging
from dataclasses import replace

import pytest

from optkit.core.errors import UserError
from optkit.core.ledger import Ledger
from optkit.report import read_rows
from optkit.report.comparable import cautions
from optkit.report.diff import diff_runs
from optkit.report.page.runs import open_runs
from optkit.report.page.tradeoff_figures import tradeoff_figures
from tests.conftest import make_record
from tests.report.runs import write_run


def _on(processor, threads=2, run="run-1", batch_size=1, **more):
    environment = {"cpu": {"name": processor}, "threads": threads} | more
    return replace(make_record(batch_size=batch_size), run=run, environment=environment)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (_on("another", run="run-2"), "processor"),
        (_on("one", threads=8, run="run-2"), "threads"),
        (_on("one", run="run-2", batch_size=4), "settings"),
        (replace(_on("one", run="run-2"), data={"fingerprint": "x"}), None),
    ],
)
def test_what_records_differ_in_is_named(other, named):
    found = cautions([_on("one"), other])
    assert ([line.split(" (")[0] for line in found] == [f"these records differ in {named}"]) == (named is not None)


NO_GPU, GPU = {"gpu": None}, {"gpu": {"name": "G", "driver": "1"}}


@pytest.mark.parametrize(
    ("one", "other", "named"),
    [
        (GPU, {"gpu": {"name": "G", "driver": "2"}}, ["GPU (G, driver 1; G, driver 2)"]),
        (NO_GPU, GPU, ["GPU (G, driver 1; no GPU)"]),
        ({}, GPU, []),  # an older ledger does not say
        (
            {"packages": {"openvino": "1", "torch": "2"}},
            {"packages": {"openvino": "3", "torch": "2"}},
            ["openvino (1; 3)"],
        ),
        ({"packages": {"openvino": None}}, {"packages": {"openvino": "3", "onnxruntime": "1"}}, []),
    ],
)
def test_the_gpu_and_the_engines_versions_are_a_part_of_the_machine(one, other, named, tmp_path):
    records = [_on("one", **one), _on("one", run="run-2", **other)]
    assert [line.split(": only")[0] for line in cautions(records)] == [f"these records differ in {n}" for n in named]
    folders = [write_run(tmp_path / r.run, [r]) for r in records]
    pictures = {f.title for f in tradeoff_figures(open_runs(folders)) if "latency" in f.title}
    assert len(pictures) == 1 + bool(named)
    pairs = diff_runs(*folders).pairs
    assert [pair.latency_ratio is None for pair in pairs] == ["GPU" in "".join(named)]


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
    assert "differ in processor (one; two)" in caplog.text
