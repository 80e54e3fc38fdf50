"""A sweep started, or started again: its definition compared with that of before, its jobs entered."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optkit.core.cache import read_json
from optkit.core.errors import UserError, cannot_write
from optkit.core.ledger import SWEEP_NAME
from optkit.core.locks import exclusive
from optkit.core.secrets import arguments_without_secrets
from optkit.sweep.state import Job, State, Sweep, SweepFolder

SHOWN = 5  # changes, in a message


def open_sweep(folder: SweepFolder, sweep: Sweep, redefine: bool = False) -> bool:
    """Makes a sweep's folder, or checks that the one that is there is of the same sweep.

    Args:
        folder: of the sweep.
        sweep: as it is defined now, without jobs.
        redefine: whether the definition may be another one than before; then every job is gone through again.

    Returns:
        Whether the folder is new.

    Raises:
        UserError: the definition has changed, or jobs of the sweep that is to be redefined are running.
    """
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder.path, error, key="out", fix="set out=DIR to a folder you can write to") from error
    with exclusive(folder.path / ".lock", f"opening {folder.file}"):
        if is_old := folder.file.exists():
            before = folder.read()
            if before.definition != sweep.definition and not redefine:
                changes = describe_changes(before.definition, sweep.definition)
                message = f"the sweep '{sweep.name}' was another one: {changes}"
                fix = "take another name, or --redefine to go on with the new definition"
                raise UserError(message, key="sweep", value=sweep.name, fix=fix)
            if redefine and (running := [str(j.number) for j in before.jobs if j.state == State.RUNNING]):
                fix = f"wait, or stop it: optkit sweep cancel {folder.path}"
                raise UserError(f"it is running (job {', '.join(running)})", key="--redefine", fix=fix)
            sweep.jobs = [] if redefine else before.jobs
        folder.write(sweep)
    return not is_old


def enter(folder: SweepFolder, batch: Sequence[Sequence[str]]) -> list[tuple[Job, bool]]:
    """Enters jobs into a sweep: each of the batch with whether it is to be started.

    A finished job is not; of the same job twice the second is not. One that another process runs is started, too, and
    waits for it.
    """
    found: list[tuple[Job, bool]] = []
    with folder.change() as sweep:
        for overrides in batch:
            job = sweep.find(overrides)
            if job is None:
                job = Job(len(sweep.jobs), arguments_without_secrets(overrides))
                sweep.jobs.append(job)
            elif job.state != State.FINISHED and not folder.is_worked_on(job.number):
                job = sweep.jobs[job.number] = job.waiting()
            twice = any(job.number == other.number for other, _ in found)
            found.append((job, job.state != State.FINISHED and not twice))
    return found


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterable[str]:
    """The keys whose values are not the same, each as a clause."""
    for key in [*now, *(key for key in before if key not in now)]:
        if key not in before:
            yield f"{key}={_text(now[key])} is new"
        elif key not in now:
            yield f"{key} is gone"
        elif before[key] != now[key]:
            yield f"{key} was {_text(before[key])} and is {_text(now[key])}"


def same_command(folder: Path, command: Sequence[str], definition: Mapping[str, Any]) -> str | None:
    """What has changed since the same command last made a sweep of another definition, in words; None if none did.

    Args:
        folder: of sweeps.
        command: of the sweep that is to be opened.
        definition: of that sweep.
    """
    files = sorted(folder.glob(f"*/{SWEEP_NAME}"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files:
        data = read_json(file) or {}
        if data.get("command") == list(command) and data.get("definition") != definition:
            return f"{describe_changes(data['definition'], definition)} since {file.parent}"
    return None


def describe_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first keys whose values are not the same, in words."""
    changes = list(changed(before, now))
    more = f"; and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
    return "; ".join(changes[:SHOWN]) + more


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
