"""What a sweep's folder says: its definition and its jobs, in ``sweep.json``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from optkit.core.cache import write_text
from optkit.core.errors import UserError
from optkit.core.ledger import SWEEP_NAME
from optkit.core.locks import exclusive, is_held
from optkit.core.secrets import arguments_without_secrets

VERSION = 1
# overrides that say where a sweep is and how its jobs are started, not what they are
APART = ("sweep", "fail_fast", "out", "store", "fresh", "hydra")


class State(StrEnum):
    """Of a job."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        number: its place in the sweep, from 0.
        overrides: all of its overrides, as the sweeper gave them.
        run: its run's folder, relative to the sweep's; None until it is known.
        why: why it failed, was interrupted or was cancelled, in one line.
        exit_code: of a failure: 2 for a mistake in the recipe, 1 otherwise.
        host, pid, process_started: who runs it, or ran it; the last is in seconds since 1970.
        slurm: its id in Slurm, if it runs there.
        started, ended: ISO 8601, with the time zone.
    """

    number: int
    overrides: list[str]
    state: State = State.WAITING
    run: str | None = None
    why: str | None = None
    exit_code: int | None = None
    host: str | None = None
    pid: int | None = None
    process_started: float | None = None
    slurm: str | None = None
    started: str | None = None
    ended: str | None = None

    def waiting(self) -> Job:
        """The job before it was started."""
        return Job(self.number, self.overrides)


@dataclass
class Sweep:
    """What ``sweep.json`` holds.

    Attributes:
        name: of the sweep.
        recipe: the recipe's file.
        command: the arguments of ``optkit`` that started it.
        cwd: the folder it was started in.
        launcher: the class that starts its jobs.
        fail_fast: whether one failed job stops the others.
        definition: what its jobs are made of, by key: the recipe without the values that vary, and these.
        jobs: by number.
        folder: where it was started; empty in sweeps of before.
    """

    name: str
    recipe: str
    command: list[str]
    cwd: str
    launcher: str = ""
    fail_fast: bool = False
    definition: dict[str, Any] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)
    folder: str = ""

    def find(self, overrides: Sequence[str]) -> Job | None:
        """The job with these overrides, in any order."""
        wanted = identity(overrides)
        return next((job for job in self.jobs if identity(job.overrides) == wanted), None)

    def own(self, job: Job) -> str:
        """The overrides in which a job differs from others; all of them where the sweep has one job."""
        kept = [o for o in job.overrides if key_of(o) not in APART]
        if len(self.jobs) < 2:
            return " ".join(kept)
        return " ".join(o for o in kept if any(o not in other.overrides for other in self.jobs))

    def count(self, *states: State) -> int:
        """How many jobs are in one of these states."""
        return sum(job.state in states for job in self.jobs)


def identity(overrides: Sequence[str]) -> list[str]:
    """What tells a job from others of its sweep; passwords and tokens, which no file may hold, do not count."""
    return sorted(arguments_without_secrets([o for o in overrides if key_of(o) not in APART]))


def key_of(override: str) -> str:
    """The first part of an override's key."""
    return override.lstrip("+~").partition("=")[0].partition(".")[0].partition("/")[0]


@dataclass(frozen=True)
class SweepFolder:
    """The folder of a sweep.

    Args:
        path: of the folder.
    """

    path: Path

    @property
    def file(self) -> Path:
        return self.path / SWEEP_NAME

    def read(self) -> Sweep:
        """What the folder says. A job whose owner is gone is interrupted.

        Raises:
            UserError: it is no sweep's folder, or a later optkit wrote it.
        """
        sweep = self._read()
        sweep.jobs = [self._as_it_is(job) for job in sweep.jobs]
        return sweep

    @contextmanager
    def change(self) -> Iterator[Sweep]:
        """The sweep, to be changed by one process at a time; written when the block ends well. Raises as `read`."""
        self._read()  # a lock would make a folder that is not there
        with exclusive(self.path / ".lock", f"writing {self.file}"):
            sweep = self._read()
            yield sweep
            self.write(sweep)

    def write(self, sweep: Sweep) -> None:
        """Writes the sweep in one step."""
        write_text(self.file, json.dumps({"version": VERSION} | asdict(sweep), indent=1) + "\n")

    def update(self, job: Job) -> None:
        """Writes one job."""
        with self.change() as sweep:
            sweep.jobs[job.number] = job

    def lock_of(self, number: int) -> Path:
        """The lock that the process holds that runs a job."""
        return self.path / ".locks" / str(number)

    def is_worked_on(self, number: int) -> bool:
        """Whether a process that is alive runs this job, on this host or another one."""
        return is_held(self.lock_of(number))

    def log_of(self, number: int) -> Path:
        """The log file of a job."""
        return self.path / f"job-{number}.log"

    def run_of(self, job: Job) -> Path | None:
        """The folder of a job's run."""
        return None if job.run is None else self.path / job.run

    def _as_it_is(self, job: Job) -> Job:
        if job.state != State.RUNNING or self.is_worked_on(job.number):
            return job
        found = self._read().jobs[job.number]  # it may have ended between the two looks
        if found.state != State.RUNNING:
            return found
        return replace(job, state=State.INTERRUPTED, why=f"process {job.pid} on {job.host} is gone")

    def _read(self) -> Sweep:
        try:
            data = json.loads(self.file.read_text(encoding="utf-8"))
            version = data.pop("version")
            if version != VERSION:
                message = f"written with version {version}, this optkit reads {VERSION}"
                raise UserError(message, key=str(self.file), value=version, fix="read it with the optkit that wrote it")
            return _sweep(data)
        except OSError as error:
            fix = f"give the folder of a sweep, which holds a {SWEEP_NAME}, such as runs/sweeps/NAME"
            raise UserError(f"no sweep at {self.path}: {error.strerror}", fix=fix) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            fix = "remove the file, and start the sweep anew: what is finished in its runs is not done again"
            raise UserError(f"not a sweep: {error}", key=str(self.file), fix=fix) from error


def _sweep(data: Mapping[str, Any]) -> Sweep:
    jobs = [Job(**(job | {"state": State(job["state"])})) for job in data["jobs"]]
    return Sweep(**(dict(data) | {"jobs": jobs}))
