"""The status of a sweep in words, and the command that goes on with it."""

import json
import os

import pytest
from click.testing import CliRunner

from optkit.cli import cli
from optkit.core.errors import UserError
from optkit.sweep.opening import enter, open_sweep
from optkit.sweep.state import Job, State, SweepFolder
from optkit.sweep.status import command_of

from .test_state import sweep


@pytest.fixture
def folder(tmp_path):
    found = SweepFolder(tmp_path / "sweeps" / "name")
    command = ["run", "x.yaml", "-m", "a=0,1,2,3", "hydra/launcher=parallel", "hydra.launcher.n_jobs=2"]
    made = sweep(command=command)
    made.cwd = str(tmp_path)
    open_sweep(found, made)
    enter(found, [[f"stages.recover.trainer.lr={n}"] for n in range(4)])
    times = {"started": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T01:01:01+00:00"}
    finished, failed = (["stages.recover.trainer.lr=0"], ["stages.recover.trainer.lr=1"])
    found.update(Job(0, finished, State.FINISHED, run="../../run-1", **times))
    found.update(Job(1, failed, State.FAILED, why="stages.x: [bad] (good)", exit_code=2, **times))
    return found


@pytest.mark.parametrize("width", [60, 120])
def test_the_table_fits_the_terminal_and_failures_have_a_line_each(folder, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    shown = CliRunner().invoke(cli, ["sweep", "status", str(folder.path)]).output
    lines = shown.splitlines()
    assert lines[0] == "name: 2 waiting, 1 finished, 1 failed"
    table = [line for line in lines if "trainer" in line or "finished" in line]
    assert table
    assert max(map(len, table)) <= width
    assert "1:01:01" in shown
    assert "run-1" in shown
    assert "job 1 failed: stages.x: [bad] (good)" in lines
    assert f"go on: optkit sweep resume {folder.path}" in lines


def test_as_json_it_has_all_that_is_known(folder):
    shown = json.loads(CliRunner().invoke(cli, ["sweep", "status", str(folder.path), "--format", "json"]).output)
    assert shown["counts"] == {"waiting": 2, "finished": 1, "failed": 1}
    assert [job["state"] for job in shown["jobs"]] == ["finished", "failed", "waiting", "waiting"]
    assert shown["jobs"][0]["run"] == str(folder.path.parent.parent / "run-1")


def test_a_sweep_is_continued_by_its_command_in_its_folder_on_another_launcher_too(folder, tmp_path):
    with command_of(folder.path, ()) as command:
        assert os.getcwd() == str(tmp_path)
        assert command == [*folder.read().command, "sweep=name"]
    other = ["hydra/launcher=ray", "fail_fast=true"]
    with command_of(folder.path, other) as command:
        assert command == ["run", "x.yaml", "-m", "a=0,1,2,3", "sweep=name", *other]
    for override in ("a=4", "--dry-run", "seed=1"):
        with pytest.raises(UserError, match="a sweep is continued as it is"), command_of(folder.path, [override]):
            pass


def test_what_cannot_be_continued_is_said(folder):
    with folder.change() as found:
        found.cwd = "/gone"
    with pytest.raises(UserError, match="the folder it was started in is gone: /gone"), command_of(folder.path, ()):
        pass
    with folder.change() as found:
        found.command = []
    with pytest.raises(UserError, match="started from Python"), command_of(folder.path, ()):
        pass


def test_a_folder_that_was_moved_is_not_continued_where_it_was(folder, tmp_path):
    with folder.change() as found:
        found.folder = str(folder.path)
    with command_of(folder.path, ()):
        pass
    moved = folder.path.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"this folder was moved or copied: .* at {folder.path}"), command_of(moved, ()):
        pass
