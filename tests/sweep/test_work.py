"""A job at work: what its sweep's folder says of it while it runs and when it ends, and how it is cancelled."""

import os
import signal
import socket
import stat
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest

from optkit.core.errors import StageError, UserError
from optkit.core.interruption import Interruption
from optkit.sweep.cancel import cancel
from optkit.sweep.opening import enter, open_sweep
from optkit.sweep.state import Job, State, SweepFolder
from optkit.sweep.work import work_on

from .test_state import HOLD, sweep


@pytest.fixture
def folder(tmp_path):
    found = SweepFolder(tmp_path / "sweeps" / "name")
    open_sweep(found, sweep())
    enter(found, [["a=0"], ["a=1"], ["a=2"]])
    return found


def raises(error):
    def work():
        raise error

    return work


def test_a_finished_job_names_its_run_and_is_not_done_again(folder):
    seen = []

    def work():
        seen.append(folder.read().jobs[0])
        return folder.path.parent.parent / "run-1"

    work_on(folder, 0, work)
    work_on(folder, 0, work)
    (running,) = seen
    assert (running.state, running.pid, running.host) == (State.RUNNING, os.getpid(), socket.gethostname())
    job = folder.read().jobs[0]
    assert (job.state, job.run) == (State.FINISHED, "../../run-1")
    assert job.started <= job.ended


@pytest.mark.parametrize(
    ("error", "why", "code"),
    [(UserError("bad", key="a", fix="good"), "a: bad (good)", 2), (StageError("broke\nhere"), "broke here", 1),
     (RuntimeError("no\nidea"), "RuntimeError: no", 1)],
)  # fmt: skip
def test_a_failure_is_the_jobs_alone_and_has_one_line(folder, error, why, code):
    work_on(folder, 1, raises(error))
    assert [job.state for job in folder.read().jobs] == [State.WAITING, State.FAILED, State.WAITING]
    job = folder.read().jobs[1]
    assert (job.why, job.exit_code) == (why, code)
    log = folder.log_of(1).read_text()
    assert ("Traceback" in log) == isinstance(error, RuntimeError)


def test_a_signal_interrupts_the_job_and_ends_the_process(folder):
    with pytest.raises(Interruption):
        work_on(folder, 0, raises(Interruption(signal.SIGTERM)))
    job = folder.read().jobs[0]
    assert (job.state, job.why) == (State.INTERRUPTED, "ended by SIGTERM")


def test_with_fail_fast_one_failure_cancels_the_others(folder):
    with folder.change() as found:
        found.fail_fast = True
    work_on(folder, 0, raises(UserError("bad")))
    work_on(folder, 1, raises(AssertionError("is not started")))
    assert [job.state for job in folder.read().jobs] == [State.FAILED, State.CANCELLED, State.CANCELLED]
    assert folder.read().jobs[1].why == "job 0 failed (fail_fast)"


@pytest.fixture
def owner(folder):
    """A process that runs job 1."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder.lock_of(1)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    started = psutil.Process(process.pid).create_time()
    job = Job(1, ["a=1"], State.RUNNING, host=socket.gethostname(), pid=process.pid, process_started=started)
    folder.update(job)
    yield process
    process.kill()
    process.wait()


def test_cancelling_ends_what_runs_here_and_marks_the_rest(folder, owner):
    work_on(folder, 0, lambda: None)
    assert cancel(folder, "told to") == []
    assert owner.wait() == -signal.SIGTERM
    jobs = folder.read().jobs
    assert [job.state for job in jobs] == [State.FINISHED, State.CANCELLED, State.CANCELLED]
    assert [job.why for job in jobs] == [None, "told to", "told to"]


def test_a_job_within_an_allocation_of_slurm_is_ended_as_any_process(folder, owner):
    folder.update(replace(folder.read().jobs[1], slurm="41"))
    assert cancel(folder, "told to") == []
    assert owner.wait() == -signal.SIGTERM


def test_a_process_that_is_not_the_jobs_gets_no_signal(folder, owner, monkeypatch):
    monkeypatch.setattr("optkit.sweep.cancel.PATIENCE_S", 0.1)
    job = folder.read().jobs[1]
    folder.update(replace(job, process_started=job.process_started - 100))
    (left,) = cancel(folder, "told to")
    assert left.endswith("as its entry says, and that is another process: end it where it runs")
    folder.update(replace(job, host="elsewhere"))
    (left,) = cancel(folder, "told to")
    assert left == f"job 1 runs in process {owner.pid} on elsewhere: end it there"
    assert owner.poll() is None


def test_jobs_in_slurm_are_cancelled_there_those_in_the_queue_too(folder, owner, tmp_path, monkeypatch):
    told = tmp_path / "told"
    (tmp_path / "scancel").write_text(f'#!/bin/sh\necho "$@" > {told}\n')
    (tmp_path / "scancel").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in ("41_1", "41_2", "%j", "x.sh"):
        (folder.path / ".submitit" / name).mkdir(parents=True)
    with folder.change() as found:
        found.launcher = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
        found.jobs[1] = replace(found.jobs[1], slurm="41_1")
    assert cancel(folder, "told to") == []
    assert told.read_text() == "41_1 41_2\n"
    assert owner.poll() is None
    (tmp_path / "scancel").write_text("#!/bin/sh\necho no such job >&2\nexit 3\n")
    assert cancel(folder, "told to") == ["scancel 41_1 41_2: exit code 3: no such job"]
