"""Cancelling a sweep: its waiting jobs are not started, and its running ones are ended."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import psutil

from optkit.core.errors import first_line
from optkit.sweep.state import Job, State, SweepFolder

log = logging.getLogger(__name__)
SUBMITTED = ".submitit"  # the folder in which submitit keeps a folder for each job in Slurm, named by its id
PATIENCE_S = 15.0  # for a process that got SIGTERM; its own patience is shorter
SAME_S = 1.0  # two readings of when a process was started differ by less


def cancel(folder: SweepFolder, why: str) -> list[str]:
    """Marks the waiting jobs as cancelled, and ends the running ones besides that of this process.

    A process of this host gets SIGTERM, if it is the one that wrote down that it runs the job. It gets SIGKILL if it
    has not ended after 15 seconds: submitit's take no notice of SIGTERM. A job of Slurm gets ``scancel``.

    Args:
        folder: of the sweep.
        why: for the jobs' entries.

    Returns:
        What could not be ended, a line each.
    """
    running: list[Job] = []
    with folder.change() as sweep:
        for job in sweep.jobs:
            own = (job.host, job.pid) == (socket.gethostname(), os.getpid())
            alive = job.state in (State.RUNNING, State.CANCELLED) and folder.is_worked_on(job.number)
            if alive and own:
                continue
            if alive:  # also one that was cancelled before and has not ended
                running.append(job)
            if job.state in (State.WAITING, State.RUNNING):
                ended = datetime.now().astimezone().isoformat(timespec="seconds")
                sweep.jobs[job.number] = replace(job, state=State.CANCELLED, why=why, ended=ended)
        in_slurm = "slurm" in sweep.launcher.lower()
    left = _scancel(folder.path, running) if in_slurm else []
    here = (job for job in running if not (in_slurm and job.slurm))  # others may run in an allocation of Slurm, too
    return left + [text for job in here if (text := _terminate(folder, job))]


def _terminate(folder: SweepFolder, job: Job) -> str | None:
    """Ends a job's process; gives why it does not, in a line."""
    where = f"job {job.number} runs in process {job.pid} on {job.host}"
    if job.host != socket.gethostname():
        return f"{where}: end it there"
    process = _process_of(job)
    if process is None:
        gone = not folder.is_worked_on(job.number)
        return None if gone else f"{where}, as its entry says, and that is another process: end it where it runs"
    try:
        children = process.children(recursive=True)
        process.send_signal(signal.SIGTERM)
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        return f"{where}, which belongs to another user"
    if not _ends(folder, job):
        log.warning("%s: it did not end on SIGTERM, and gets SIGKILL", where)
        children.append(process)
    for child in children:  # a worker of a launcher leaves its own behind
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    return None if _ends(folder, job) else f"{where}: it has not ended"


def _ends(folder: SweepFolder, job: Job) -> bool:
    """Whether the process of a job ends in time."""
    until = time.monotonic() + PATIENCE_S
    while folder.is_worked_on(job.number):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def _process_of(job: Job) -> psutil.Process | None:
    """The process that runs a job on this host; None if it has ended, and its number belongs to another one by now."""
    if job.pid is None or job.process_started is None:
        return None
    try:
        process = psutil.Process(job.pid)
        return process if abs(process.create_time() - job.process_started) < SAME_S else None
    except psutil.NoSuchProcess:
        return None


def _scancel(folder: Path, running: Iterable[Job]) -> list[str]:
    """Cancels a sweep's jobs in Slurm, those in the queue included; gives what went wrong."""
    queued = [path.name for path in (folder / SUBMITTED).glob("*") if re.fullmatch(r"\d+(_\d+)?", path.name)]
    ids = sorted({*queued, *(job.slurm for job in running if job.slurm)})
    if not ids:
        return []
    if shutil.which("scancel") is None:
        return [f"there is no scancel here: cancel {', '.join(ids)} where Slurm is"]
    try:
        done = subprocess.run(["scancel", *ids], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"scancel {' '.join(ids)}: {first_line(error)}"]
    if done.returncode:
        return [f"scancel {' '.join(ids)}: exit code {done.returncode}: {' '.join(done.stderr.split())}"]
    log.info("cancelled in Slurm: %s", ", ".join(ids))
    return []
