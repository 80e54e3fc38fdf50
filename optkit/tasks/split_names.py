"""Which files of a folder hold which split, by their names."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from optkit.core.errors import UserError

log = logging.getLogger(__name__)
VALIDATION_NAMES = ("validation", "valid", "val", "dev")
ALIASES = {"train": ("train",), "validation": VALIDATION_NAMES, "test": ("test",)}
# train_0, train-1, train.002, train-00000-of-00002, train-00000-of-00002-0f3c (as the hub names them)
NUMBER = re.compile(r"[-_.](\d+)(?:-of-(\d+)(?:-[0-9a-f]+)?)?")


def find_tables(folder: Path, suffixes: Sequence[str]) -> dict[str, list[Path]]:
    """The files of each split: ``train.parquet``, or numbered ones such as ``train-00000-of-00002.parquet``.

    Args:
        folder: is not searched below.
        suffixes: that are read; the first of which there are files counts.

    Raises:
        UserError: a split has a file and numbered files, a file of the series is missing, or validation has two names.
    """
    by_name = {name: _files_of(folder, name, suffixes) for names in ALIASES.values() for name in names}
    found = {}
    for split, names in ALIASES.items():
        if name := one_name((name for name in names if by_name[name]), split):
            _check_series(by_name[name], name)
            found[split] = by_name[name]
    return found


def one_name(names: Iterable[str], split: str = "validation") -> str | None:
    """The one of a split's names under which there is something, or None; raises UserError if there are several."""
    found = list(names)
    if len(found) > 1:
        message = f"the {split} split is there as {' and as '.join(found)}"
        raise UserError(message, key="task.path", fix="keep one of them")
    return found[0] if found else None


def needed_for(split: str, folder: Path, suffixes: Sequence[str]) -> str:
    """What a folder must hold for a split, and what it holds that only begins with its name."""
    near = [file.name for file in similar(folder, split, suffixes)]
    instead = f", and has {' and '.join(near)}" if near else ""
    return f"it needs {split}.* or {split}-00000-of-00002.* and so on ({', '.join(suffixes)}){instead}"


def log_not_read(folder: Path, suffixes: Sequence[str], found: dict[str, list[Path]]) -> None:
    """Says which files begin with a split's name and are not read."""
    read = {file for files in found.values() for file in files}
    for split in ALIASES:
        for file in similar(folder, split, suffixes):
            if file not in read:
                log.warning("%s is not read: a split is one file, as train.csv, or numbered, as train_0.csv", file)


def similar(folder: Path, split: str, suffixes: Sequence[str]) -> list[Path]:
    """The files of a folder that begin with one of a split's names."""
    names = ALIASES[split]
    return [file for file in _visible(folder, suffixes) if file.name.lower().startswith(names)]


def _files_of(folder: Path, name: str, suffixes: Sequence[str]) -> list[Path]:
    """The files of one name, in the order of their names, all of the first suffix of which there are any."""
    files = [file for file in _visible(folder, suffixes) if file.stem == name or _number(file, name)]
    for suffix in suffixes:
        if chosen := [file for file in files if file.suffix.lower() == suffix]:
            return chosen
    return []


def _visible(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    files = (file for file in sorted(folder.iterdir()) if file.is_file() and not file.name.startswith("."))
    return [file for file in files if file.suffix.lower() in suffixes]


def _number(file: Path, name: str) -> re.Match[str] | None:
    return NUMBER.fullmatch(file.stem.removeprefix(name)) if file.stem.startswith(name) else None


def _check_series(files: Sequence[Path], name: str) -> None:
    """Raises UserError unless files are one, or a whole series, each number once."""
    numbers = [_number(file, name) for file in files]
    alone = [file for file, number in zip(files, numbers, strict=True) if number is None]
    if alone and len(files) > 1:
        other = next(file for file in files if file not in alone)
        message = f"{alone[0].name} and {other.name} may hold the same examples"
        raise UserError(message, key="task.path", fix="keep the one file, or the numbered ones")
    series = [(int(number[1]), number[2]) for number in numbers if number is not None]
    places = sorted(place for place, _ in series)
    if repeated := [place for place in places if places.count(place) > 1]:
        message = f"{name} has several files of the number {repeated[0]}"
        raise UserError(message, key="task.path", fix="keep one of them")
    totals = {total for _, total in series}
    total = max((int(total) for total in totals if total), default=None)
    if total is not None and (len(totals) > 1 or len(places) != total or places[-1] - places[0] != total - 1):
        message = f"{name} has {len(places)} of the {total} files that their names tell of"
        raise UserError(message, key="task.path", fix="add what is missing, or take out what is from elsewhere")
