"""What a sweep's folder says of its jobs, and what becomes of it when the same or another sweep is opened there."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from optkit.core.errors import UserError
from optkit.core.ledger import runs_of
from optkit.sweep.opening import changed, enter, open_sweep, same_command
from optkit.sweep.state import Job, State, Sweep, SweepFolder

HOLD = """
import sys, time
from pathlib import Path
from optkit.core.locks import exclusive
with exclusive(Path(sys.argv[1]), "running"):
    print("held", flush=True)
    time.sleep(60)
"""


def sweep(*jobs, definition=None, command=("run", "x")):
    return Sweep("name", "/x.yaml", list(command), "/", definition=definition or {"seed": 0}, jobs=list(jobs))


@pytest.fixture
def folder(tmp_path):
    found = SweepFolder(tmp_path / "sweeps" / "name")
    open_sweep(found, sweep())
    return found


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "no sweep at"), ("{", "not a sweep"), ('{"version": 1, "jobs": 3}', "not a sweep"),
     ('{"version": 2}', "written with version 2")],
)  # fmt: skip
def test_what_is_no_sweep_is_said(tmp_path, text, message):
    if text is not None:
        (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(UserError, match=message):
        SweepFolder(tmp_path).read()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=message), SweepFolder(tmp_path).change():
        pass
    assert sorted(tmp_path.iterdir()) == before


def test_a_job_is_known_by_its_overrides_in_any_order_whatever_starts_it(folder):
    ((job, starts),) = enter(folder, [["a=1", "b=2", "sweep=name", "out=here"]])
    assert (job.number, starts) == (0, True)
    again = enter(folder, [["out=there", "b=2", "a=1"], ["b=2", "a=3"], ["a=3", "b=2"]])
    assert [(job.number, starts) for job, starts in again] == [(0, True), (1, True), (1, False)]
    found = folder.read()
    assert [found.own(job) for job in found.jobs] == ["a=1", "a=3"]


def test_finished_jobs_are_not_started_again_and_others_are(folder):
    entered = enter(folder, [[f"a={n}"] for n in range(len(State))])
    for (job, _), state in zip(entered, State, strict=True):
        folder.update(replace(job, state=state, why="why", exit_code=1))
    again = enter(folder, [[f"a={n}"] for n in range(len(State))])
    assert [starts for _, starts in again] == [state != State.FINISHED for state in State]
    jobs = folder.read().jobs
    assert {job.state for job in jobs} == {State.WAITING, State.FINISHED}
    assert {job.why for job in jobs if job.state == State.WAITING} == {None}


def test_a_running_job_whose_owner_is_dead_is_interrupted(folder):
    enter(folder, [["a=1"]])
    folder.update(Job(0, ["a=1"], State.RUNNING, host="elsewhere", pid=7))
    owner = subprocess.Popen([sys.executable, "-c", HOLD, folder.lock_of(0)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "held\n"
    assert folder.read().jobs[0].state == State.RUNNING
    # another command that starts the job leaves its entry alone, and waits for it
    assert enter(folder, [["a=1"]])[0][0].state == State.RUNNING
    owner.kill()
    owner.wait()
    (job,) = folder.read().jobs
    assert (job.state, job.why) == (State.INTERRUPTED, "process 7 on elsewhere is gone")
    assert json.loads(folder.file.read_text())["jobs"][0]["state"] == "running"


def test_another_definition_is_refused_unless_asked_for(folder):
    enter(folder, [["a=1"]])
    other = {"seed": 1, "new": [1]}
    message = "sweep: the sweep 'name' was another one: seed was 0 and is 1; new=\\[1\\] is new \\(take another name"
    with pytest.raises(UserError, match=message):
        open_sweep(folder, sweep(definition=other))
    assert len(folder.read().jobs) == 1
    assert not open_sweep(folder, sweep(definition=other), redefine=True)
    assert (folder.read().jobs, folder.read().definition) == ([], other)
    assert list(changed(other, {"seed": 1})) == ["new is gone"]


def test_the_same_command_with_another_definition_is_noticed(folder):
    assert same_command(folder.path.parent, ["run", "x"], {"seed": 0}) is None
    assert same_command(folder.path.parent, ["run", "y"], {"seed": 1}) is None
    assert same_command(folder.path.parent, ["run", "x"], {"seed": 1}) == f"seed was 0 and is 1 since {folder.path}"


def test_the_runs_of_a_sweep_are_those_of_its_jobs(folder):
    run = folder.path.parent.parent / "run-1"
    run.mkdir()
    for number, home in enumerate(("../../run-1", None, "../../gone", "../../run-1")):
        enter(folder, [[f"a={number}"]])
        folder.update(Job(number, [f"a={number}"], State.FINISHED, run=home))
    assert runs_of(folder.path) == [run]
