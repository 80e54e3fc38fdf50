"""The ledger: append-only JSON lines, one file a run; a kill at any byte loses at most the line being written."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

from optkit.core.cache import read_json
from optkit.core.environment import same_timing
from optkit.core.errors import UserError
from optkit.core.locks import exclusive
from optkit.core.records import READABLE, SCHEMA, Measurement, Record

log = logging.getLogger(__name__)
LEDGER_NAME = "ledger.jsonl"
UNMEASURED_NAME = "unmeasured.jsonl"  # records of variants that are made and not measured yet (``measure=later``)
SWEEP_NAME = "sweep.json"  # in the folder of a sweep: where the runs of its jobs are (`optkit.sweep.state`)
SEARCH_NAME = "search.json"  # in the folder of a search, whose finished front is in its folder ``front``
# the conditions that tell where a figure was taken; the others say how it was taken
PLACE = ("engine", "batch_size", "sequence_length", "workload", "per")


class Ledger:
    """The ledger file of one run.

    Args:
        path: the file; made by the first `append`.
    """

    def __init__(self, path: Path):
        self.path = path

    def append(self, record: Record) -> bool:
        """Writes one record and waits until it is on disk; a record whose key is there already is not written again.

        One process writes at a time. A torn last line, left by a kill, is cut off first; a write that fails (the disk
        is full) is undone.

        Returns:
            Whether it was written.
        """
        line = json.dumps(record.to_json(), allow_nan=False, separators=(",", ":")).encode() + b"\n"
        lock = exclusive(self.path.with_name(f".{self.path.name}.lock"), f"writing {self.path}")
        with lock, open(self.path, "ab+", buffering=0) as file:
            whole = _whole_lines(file)
            file.truncate(whole)
            if record.key in {known.key for known in self.records()}:
                return False
            try:
                _write_all(file, line)
                os.fsync(file.fileno())
            except OSError:
                file.truncate(whole)
                raise
        return True

    def records(self) -> list[Record]:
        """All whole records, in the order written; none when there is no file yet."""
        return _read_file(self.path) if self.path.exists() else []


def read(*paths: str | Path) -> list[Record]:
    """The records of several runs: run folders, folders of these, or ledger files.

    Raises:
        UserError: a path holds no ledger, or a line that is not a record.
    """
    return [record for path in paths for run in runs_of(Path(path)) for record in _read_file(_ledger_file(run))]


def runs_of(folder: Path) -> list[Path]:
    """The run folders in a folder of runs or of studies of runs, or of a sweep; a run's own folder stands for itself.

    Of a finished search they are those of its front. A ledger stands for itself, too. Runs that are not measured yet
    (``measure=later``) are among them.
    """
    if (folder / LEDGER_NAME).is_file() or (folder / UNMEASURED_NAME).is_file():
        return [folder]
    if (folder / SWEEP_NAME).is_file():
        return _runs_of_sweep(folder) or [folder]
    if (folder / SEARCH_NAME).is_file():
        return runs_of(folder / "front")
    names = [f"{depth}/{name}" for depth in ("*", "*/*") for name in (LEDGER_NAME, UNMEASURED_NAME)]
    return sorted({file.parent for name in names for file in folder.glob(name)}) or [folder]


def _runs_of_sweep(folder: Path) -> list[Path]:
    """The run folders of a sweep's jobs, as far as these are finished."""
    jobs = (read_json(folder / SWEEP_NAME) or {}).get("jobs", ())
    found = [Path(os.path.normpath(folder / job["run"])) for job in jobs if job.get("run")]
    return [run for run in dict.fromkeys(found) if run.is_dir()]


def unmeasured(folder: Path) -> list[Record]:
    """The variants of a run that are made and not measured yet: their records, without measurements."""
    waiting = Ledger(folder / UNMEASURED_NAME).records()
    if not waiting:
        return []
    measured = {record.place for record in Ledger(folder / LEDGER_NAME).records()}
    return [record for record in waiting if record.place not in measured]


def variants_of(folder: Path) -> list[Record]:
    """Every variant of a run: as it was last measured, or without measurements where it is not measured yet.

    Raises:
        UserError: there is no run in that folder.
    """
    waiting = unmeasured(folder)
    measured = unique(read(folder)) if (folder / LEDGER_NAME).is_file() or not waiting else []
    return [*measured, *waiting]


def forget_measured(folder: Path) -> None:
    """Removes the list of what is not measured yet, once all of it is measured; only for who has the run's lock."""
    if not unmeasured(folder):
        (folder / UNMEASURED_NAME).unlink(missing_ok=True)


def one_run(path: Path) -> Path:
    """The run folder that a path stands for.

    Raises:
        UserError: it holds several runs.
    """
    inside = runs_of(path)
    if len(inside) > 1:
        raise UserError(f"{path} holds {len(inside)} runs", fix=f"give one of them, such as {inside[0]}")
    return inside[0]


def _ledger_file(path: Path) -> Path:
    file = path / LEDGER_NAME if path.is_dir() else path
    if not file.is_file() and (path / UNMEASURED_NAME).is_file():
        raise UserError(f"{path} is not measured yet", fix=f"optkit measure {path}")
    if not file.is_file():
        raise UserError(
            f"no ledger at {path}", fix=f"give a run folder, which holds a {LEDGER_NAME}, or a folder of these"
        )
    return file


def _read_file(path: Path) -> list[Record]:
    lines = path.read_bytes().split(b"\n")
    torn = lines.pop()
    if torn:
        log.warning("%s: the last line is torn (an interrupted run) and is left out", path)
    older: set[int] = set()
    records = [_parse(line, f"{path}:{number}", older) for number, line in enumerate(lines, 1) if line.strip()]
    if older:
        log.warning("%s: written with schema %s, read as %d: what is newer is null", path, min(older), SCHEMA)
    return records


def _parse(line: bytes, where: str, older: set[int]) -> Record:
    """A line's record; its schema goes into ``older`` if it is."""
    try:
        data = json.loads(line)
        schema = data["schema"]
        if schema not in READABLE:
            fix = "read it with the optkit that wrote it"
            raise UserError(
                f"written with schema {schema}, this optkit reads {SCHEMA}", key=where, value=schema, fix=fix
            )
        if schema != SCHEMA:
            older.add(schema)
        return Record.from_json(data)
    except (ValueError, KeyError, TypeError) as error:
        fix = "give a run folder or its ledger.jsonl; restore the file if it is damaged"
        raise UserError(f"not a ledger record: {error}", key=where, fix=fix) from None


def _write_all(file: FileIO, line: bytes) -> None:
    """Writes every byte: a raw file may take a part of them before it fails."""
    left = memoryview(line)
    while left:
        left = left[file.write(left) :]


def _whole_lines(file: BinaryIO | FileIO) -> int:
    """Bytes up to and with the last newline of an open binary file."""
    size = file.seek(0, os.SEEK_END)
    block = 1 << 16
    end = size
    while end > 0:
        start = max(0, end - block)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def unique(records: Iterable[Record]) -> list[Record]:
    """Each variant of a run once, every figure as it was last measured.

    Of records that were written twice the first counts. A variant that was measured again keeps what was not measured
    again, unless it is of another machine or other versions of the engines: such figures do not stand in one report.
    """
    found: dict[tuple[str, int, str], dict[int, Record]] = {}
    for record in records:
        found.setdefault(record.place, {}).setdefault(record.measured_again, record)
    return [_latest([times[n] for n in sorted(times, reverse=True)]) for times in found.values()]


def _latest(newest_first: Sequence[Record]) -> Record:
    latest = newest_first[0]
    for earlier in newest_first[1:]:
        if same_timing(latest.environment, earlier.environment):
            latest = replace(latest, measurements=[*latest.measurements, *_left(earlier, latest)])
    return latest


def _left(earlier: Record, latest: Record) -> list[Measurement]:
    """What was not measured again, and all latencies: the series of one round are of use together only."""
    again = {_what(m) for m in latest.measurements}
    return [m for m in earlier.measurements if m.name == "latency" or _what(m) not in again]


def _what(measurement: Measurement) -> tuple[Any, ...]:
    return (measurement.name, *(measurement.conditions.get(key) for key in PLACE))
