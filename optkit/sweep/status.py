"""What a sweep came to so far, as a table and as JSON, and the command that goes on with it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from optkit.core.errors import UserError
from optkit.core.secrets import LEFT_OUT
from optkit.sweep.state import Job, State, Sweep, SweepFolder, key_of

if TYPE_CHECKING:
    from rich.table import Table

STYLES = {
    State.FINISHED: "green",
    State.RUNNING: "cyan",
    State.FAILED: "red",
    State.INTERRUPTED: "yellow",
    State.CANCELLED: "yellow",
    State.WAITING: "dim",
}
MAY_CHANGE = ("hydra", "fail_fast", "log")  # what a sweep may be continued with


def as_json(folder: Path) -> str:
    """A sweep as one JSON object: ``name``, ``counts`` by state, and ``jobs``.

    Raises:
        UserError: it is no sweep's folder.
    """
    home = SweepFolder(folder)
    sweep = home.read()
    jobs = [asdict(job) | {"own": sweep.own(job), "run": _text(home.run_of(job))} for job in sweep.jobs]
    return json.dumps({"name": sweep.name, "folder": str(folder), "counts": _counts(sweep), "jobs": jobs}, indent=1)


def print_status(folder: Path) -> None:
    """Prints the jobs as a table that fits the terminal, with a line for each that failed or stopped.

    Raises:
        UserError: it is no sweep's folder.
    """
    from rich.console import Console
    from rich.markup import escape

    home = SweepFolder(folder)
    sweep = home.read()
    console = Console(soft_wrap=False, highlight=False)
    counts = ", ".join(f"{count} {state}" for state, count in _counts(sweep).items()) or "no jobs yet"
    console.print(f"{escape(sweep.name)}: {counts}")
    if sweep.jobs:
        console.print(_table(home, sweep))
    for (state, why), numbers in _reasons(sweep).items():
        console.print(f"job {', '.join(numbers)} {state}: {escape(why)}", style=STYLES[state], soft_wrap=True)
    if sweep.count(State.RUNNING):
        console.print(f"stop: optkit sweep cancel {folder}", soft_wrap=True)
    elif sweep.count(State.FINISHED) < len(sweep.jobs):
        console.print(f"go on: optkit sweep resume {folder}", soft_wrap=True)
    if sweep.count(State.FINISHED):
        console.print(f"results: optkit report {folder}", soft_wrap=True)


def _reasons(sweep: Sweep) -> dict[tuple[State, str], list[str]]:
    """The jobs that failed or stopped for the same reason, by state and reason."""
    found: dict[tuple[State, str], list[str]] = {}
    for job in sweep.jobs:
        if job.why:
            found.setdefault((job.state, job.why), []).append(str(job.number))
    return found


def _table(home: SweepFolder, sweep: Sweep) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("job", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("took", justify="right", no_wrap=True)
    table.add_column("overrides", overflow="fold", ratio=2)
    table.add_column("run", overflow="fold", ratio=1)
    for job in sweep.jobs:
        run = home.run_of(job)
        style = STYLES[job.state]
        state = f"[{style}]{job.state}[/]"
        table.add_row(str(job.number), state, _took(job), escape(sweep.own(job)), escape(run.name if run else "-"))
    return table


def _took(job: Job) -> str:
    """How long a job ran, or has been running."""
    if job.started is None:
        return "-"
    until = datetime.fromisoformat(job.ended) if job.ended else datetime.now().astimezone()
    if job.ended is None and job.state != State.RUNNING:
        return "?"
    return str(timedelta(seconds=round((until - datetime.fromisoformat(job.started)).total_seconds())))


def _counts(sweep: Sweep) -> dict[str, int]:
    return {str(state): count for state in State if (count := sweep.count(state))}


def _text(path: Path | None) -> str | None:
    return None if path is None else os.path.normpath(path)


@contextmanager
def command_of(folder: Path, more: Sequence[str]) -> Iterator[list[str]]:
    """The arguments of ``optkit`` that go on with a sweep, for the time of the block in the folder it was started in.

    Args:
        folder: of the sweep.
        more: overrides of how its jobs are started.

    Raises:
        UserError: an override of what the jobs are, a sweep that Python started, one that was moved, a folder that is
            gone.
    """
    home = SweepFolder(folder.resolve())
    sweep = home.read()
    for override in more:
        if (
            override.startswith("-")
            or override.lstrip("+~").partition("=")[0].replace("/", ".").partition(".")[0] not in MAY_CHANGE
        ):
            fix = "start a sweep of its own with it, or give hydra.launcher, fail_fast or log"
            raise UserError("a sweep is continued as it is", key=override.partition("=")[0], fix=fix)
    if not sweep.command:
        raise UserError("this sweep was started from Python", key=str(folder), fix="run the same code again")
    if hidden := [argument for argument in sweep.command if LEFT_OUT in argument]:
        fix = "run the whole command again: the sweep goes on"
        raise UserError("the folder holds no passwords and tokens", key=hidden[0].partition("=")[0], fix=fix)
    if sweep.folder and Path(sweep.folder).resolve() != home.path:
        message = f"this folder was moved or copied: its sweep and the runs of its jobs are at {sweep.folder}"
        fix = "move it back, or run its command again with out=DIR, which takes finished stages from the store"
        raise UserError(message, key=str(folder), fix=fix)
    if not Path(sweep.cwd).is_dir():
        fix = "run its command in the folder that it has now"
        raise UserError(f"the folder it was started in is gone: {sweep.cwd}", key=str(folder), fix=fix)
    placed = any(key_of(o) == "sweep" for o in sweep.command)
    named = [] if placed or home.path.name != sweep.name else [f"sweep={sweep.name}"]
    replaced = {override.lstrip("+").partition("=")[0] for override in more}
    kept = [o for o in sweep.command if o.lstrip("+").partition("=")[0] not in replaced]
    if "hydra/launcher" in replaced:  # the options of the one before are not its own
        kept = [o for o in kept if not o.lstrip("+").startswith("hydra.launcher.")]
    before = Path.cwd()
    os.chdir(sweep.cwd)
    try:
        yield [*kept, *named, *more]
    finally:
        os.chdir(before)
