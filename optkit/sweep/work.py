"""One job of a sweep at work: it says in the sweep's folder that it runs, and how it ended."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import psutil

from optkit.core.errors import OptkitError, first_line
from optkit.core.locks import exclusive
from optkit.core.logs import log_file
from optkit.sweep.cancel import cancel
from optkit.sweep.state import Job, State, SweepFolder

log = logging.getLogger(__name__)


def work_on(folder: SweepFolder, number: int, work: Callable[[], Path | None]) -> None:
    """Does a job of a sweep, unless it is finished or cancelled by now.

    One process at a time works on a job; another one waits, and then finds it finished. A failure is written down and
    logged, not raised: the other jobs go on, unless the sweep is to stop at the first failure (``fail_fast``).

    Args:
        folder: of the sweep.
        number: of the job.
        work: does it; gives the folder of its run.

    Raises:
        BaseException: what ends the process; the job is interrupted then.
    """
    with exclusive(folder.lock_of(number), f"running job {number} of {folder.path.name}"):
        job = _claimed(folder, number)
        if job is None:
            return
        sweep = folder.read()
        log.info("job %d: %s", number, sweep.own(job))
        try:
            with log_file(folder.log_of(number)):
                run = work()
        except Exception as error:
            end = _Failure.of(error)
            log.error("job %d failed: %s", number, end.why, exc_info=error if end.unexpected and _debugs() else None)
            _end(folder, job, State.FAILED, why=end.why, exit_code=end.exit_code)
            if sweep.fail_fast:
                cancel(folder, f"job {number} failed (fail_fast)")
        except BaseException as error:
            _end(folder, job, State.INTERRUPTED, why=f"ended by {first_line(error)}")
            raise
        else:
            home = None if run is None else os.path.relpath(run, folder.path)
            _end(folder, job, State.FINISHED, run=home)


@dataclass(frozen=True)
class _Failure:
    why: str
    exit_code: int
    unexpected: bool

    @classmethod
    def of(cls, error: Exception) -> _Failure:
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", [])[:1])
        if isinstance(error, OptkitError):
            return cls(" ".join(f"{error}{notes}".split()), error.exit_code, unexpected=False)
        return cls(f"{type(error).__name__}: {first_line(error)}{notes}", 1, unexpected=True)


def _debugs() -> bool:
    return logging.getLogger("optkit").isEnabledFor(logging.DEBUG)


def _claimed(folder: SweepFolder, number: int) -> Job | None:
    """The job, now running in this process; None if there is nothing left to do."""
    with folder.change() as sweep:
        job = sweep.jobs[number]
        if job.state == State.CANCELLED:
            log.info("job %d is cancelled: %s", number, job.why)
        if job.state in (State.FINISHED, State.CANCELLED):
            return None
        sweep.jobs[number] = job = replace(
            job.waiting(),
            state=State.RUNNING,
            host=socket.gethostname(),
            pid=os.getpid(),
            process_started=psutil.Process().create_time(),
            slurm=_slurm_id(),
            started=_now(),
        )
    return job


def _slurm_id() -> str | None:
    """The id of this job in Slurm, as ``scancel`` takes it."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '0')}"
    return os.environ.get("SLURM_JOB_ID")


def _end(folder: SweepFolder, job: Job, state: State, **more: str | int | None) -> None:
    with folder.change() as sweep:
        if sweep.jobs[job.number].state == State.CANCELLED and state != State.FINISHED:
            return
        sweep.jobs[job.number] = replace(job, state=state, ended=_now(), **more)  # type: ignore[arg-type]


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
