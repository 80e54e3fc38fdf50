"""Reports of runs that hold less, or stranger names, than a run usually does."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from optkit.report import render, rows, write_report
from optkit.report.tables import limit_table, markdown, table
from tests.conftest import make_record
from tests.report.runs import answers, chain, series, write_run


def _without(names):
    return [replace(r, measurements=[m for m in r.measurements if m.name not in names]) for r in chain()]


def _unmeasured():
    return [
        replace(r, measurements=[replace(m, value=None, ci=None, raw=None) if m.name == "latency" else m for m in r.measurements])
        for r in chain()
    ]  # fmt: skip


def _stages(name):
    return [replace(r, stage=name.format(n)) for n, r in enumerate(chain())]


RUNS = {
    "one row": lambda: [make_record(correct=answers(950), series=series({"eager": 4.0}, None), batch_size=8)],
    "one round": lambda: [make_record(series=series({"eager": 4.0}, None, 0, 1), correct=answers(950))],
    "one example": lambda: [make_record(correct=np.array([True]))],
    "no latency": lambda: _without({"latency"}),
    "latency that could not be had": _unmeasured,
    "no accuracy": lambda: _without({"accuracy"}),
    "no size, MACs or parameters": lambda: _without({"size", "macs", "params"}),
    "no baseline": lambda: chain()[1:],
    "names with brackets and bars": lambda: _stages("[bold]{}[/x] | a"),
    "long names": lambda: _stages("a_very_long_name_of_a_stage_" * 4 + "{}"),
}


@pytest.mark.parametrize("name", RUNS)
def test_every_format_takes_it(name, tmp_path):
    folder = write_run(tmp_path / "run", RUNS[name]())
    for format_ in ("table", "md", "html"):
        assert render([folder], format_)
    json.loads(render([folder], "json"), parse_constant=pytest.fail)
    write_report(folder)


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 130, 170])
@pytest.mark.parametrize("name", ["long names", "one row", "controls"])
def test_nothing_is_cut_off_on_a_narrow_terminal(name, width):
    records = (
        [chain()[0], *(replace(r, control="random_prune") for r in chain()[1:])] if name == "controls" else RUNS[name]()
    )
    for record in records:
        for m in record.measurements:
            if m.name == "latency":
                m.conditions["p99_limit_ms"] = 5.0
    found = rows(records)
    with Console(width=width, record=True, file=open("/dev/null", "w")) as console:
        console.print(table(found, width))
        console.print(limit_table(found, width))
    text = console.export_text()
    assert "…" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width


def test_names_are_shown_as_they_are(tmp_path):
    records = _stages("[bold]{}[/x] | a")
    folder = write_run(tmp_path / "run", records)
    assert "1 [bold]1[/x] | a" in render([folder], "table")
    lines = [line for line in markdown(rows(records)).splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_a_file_gets_every_column(tmp_path):
    folder = write_run(tmp_path / "run", _stages("a_very_long_name_of_a_stage_" * 4 + "{}"))
    # given as it is: readline, which pytest imports, puts COLUMNS into what a process inherits
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    command = [sys.executable, "-m", "optkit", "report", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "stage s" in done.stdout.splitlines()[0]
    assert "\x1b" not in done.stdout
