"""Data sets in files: the splits of a local folder or of the hub, as tables."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optkit.core.checks import check_share
from optkit.core.errors import UserError, did_you_mean, first_line

VALIDATION_NAMES = ("validation", "valid", "val", "dev")


def files_key(files: Sequence[Path], *settings: object) -> str:
    """A key that changes when any of the files (by path, size and time) or the settings do."""
    state = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return hashlib.sha256(json.dumps([state, [str(s) for s in settings]]).encode()).hexdigest()[:24]


@dataclass(kw_only=True)
class SplitFiles:
    """What tasks read from files share; a base beside the task's own.

    Attributes:
        path: the local folder.
        validation_share: share of train held out, by class, where there is no validation split.
        unlabelled: a folder or a file of examples without labels, on which stages that distill train as well; those
            that are in validation or test, too, are left out.
    """

    path: str | None = None
    validation_share: float = 0.1
    unlabelled: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]
        check_share("validation_share", self.validation_share)
        if self.unlabelled is not None and not self.find_unlabelled(Path(self.unlabelled)):
            fix = "a folder or a file of what train has, without labels"
            raise UserError(f"no examples in {self.unlabelled}", key="unlabelled", value=self.unlabelled, fix=fix)
        if self.path is None:
            return
        if not Path(self.path).is_dir():
            raise UserError(f"no folder {self.path}", key="path", value=self.path, fix="check the path")
        found = self.find(Path(self.path))
        for name in ("train", "test"):
            if name not in found:
                raise UserError(f"{self.path} has no {name} split", key="path", value=self.path, fix=self.layout(name))

    def find(self, folder: Path) -> Mapping[str, Any]:
        """What the folder holds of each split."""
        raise NotImplementedError

    def find_unlabelled(self, path: Path) -> Sequence[Path]:
        """The files of a folder, or the file itself, that hold examples without labels."""
        raise NotImplementedError

    def layout(self, split: str) -> str:
        """What the folder must hold for a split, for the error."""
        raise NotImplementedError


@dataclass(frozen=True)
class Table:
    """A split as it was read: the rows of a ``datasets.Dataset``, and a key that changes when its source does."""

    rows: Any
    key: str

    def column(self, name: str, option: str, split: str) -> list[Any]:
        """A column's values; ``option`` is the config key that named it."""
        if name not in self.rows.column_names:
            fix = did_you_mean(name, self.rows.column_names)
            raise UserError(f"{split} has no column '{name}'", key=f"task.{option}", value=name, fix=fix)
        return self.rows.data.column(name).to_pylist()


def find_tables(folder: Path, suffixes: Sequence[str]) -> dict[str, list[Path]]:
    """The files of each split: ``train*.parquet`` and so on; the first suffix of which there are files counts."""
    found = {}
    for split in ("train", "validation", "test"):
        for name in VALIDATION_NAMES if split == "validation" else (split,):
            for suffix in suffixes:
                if split not in found and (files := sorted(folder.glob(f"{name}*{suffix}"))):
                    found[split] = files
    return found


def files_in(path: Path, suffixes: Sequence[str]) -> list[Path]:
    """A file of one of these suffixes, or those in a folder.

    Raises:
        UserError: files of several of them.
    """
    files = [path] if path.is_file() else sorted(path.glob("*"))
    files = [file for file in files if file.suffix.lower() in suffixes]
    if len(kinds := sorted({file.suffix.lower() for file in files})) > 1:
        raise UserError(f"{path} holds {' and '.join(kinds)} files", key="unlabelled", fix="give files of one kind")
    return files


def read_tables(files: Mapping[str, Sequence[Path]], option: str = "path") -> dict[str, Table]:
    """Parquet, CSV and JSON (one object a line, or one list) files as tables; ``option`` is the config key to blame.

    Raises:
        UserError: a file that is not what its ending says.
    """
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    _no_bars()
    readers = {".parquet": Dataset.from_parquet, ".csv": Dataset.from_csv}
    found = {}
    for split, paths in files.items():
        read = readers.get(paths[0].suffix.lower(), Dataset.from_json)
        try:
            found[split] = Table(read([str(p) for p in paths], keep_in_memory=True), files_key(paths))
        except (DatasetGenerationError, ValueError, OSError) as error:
            cause = error.__cause__ or error
            reason = first_line(cause)
            raise UserError(f"cannot read {paths[0]}: {reason}", key=f"task.{option}") from error
    return found


def hub_tables(dataset: str) -> dict[str, Table]:
    """The splits of a data set of the hub.

    Raises:
        UserError: it cannot be had.
    """
    from datasets import load_dataset

    _no_bars()
    try:
        data = load_dataset(dataset)
    except (OSError, ValueError) as error:
        reason = first_line(error)
        fix = "check the network, or give task.path=DIR with train and test files"
        raise UserError(f"cannot load '{dataset}': {reason}", key="task.dataset", fix=fix) from error
    named = {"validation" if name in VALIDATION_NAMES else name: rows for name, rows in data.items()}
    return {name: Table(rows, files_key([], rows._fingerprint)) for name, rows in named.items()}


def splits_of(found: Mapping[str, Table], dataset: str, *needed: Sequence[str]) -> dict[str, Table]:
    """The train, validation and test splits among those that a data set of the hub has.

    Args:
        found: its splits.
        dataset: its id.
        needed: names of which one at least must be there.

    Raises:
        UserError: none of them is.
    """
    for names in needed:
        if not any(name in found for name in names):
            fix = f"it has {', '.join(found)}; give task.path=DIR with train and test files"
            raise UserError(
                f"'{dataset}' has no {' or '.join(names)} split", key="task.dataset", value=dataset, fix=fix
            )
    return {name: table for name, table in found.items() if name in ("train", "validation", "test")}


def _no_bars() -> None:
    """Keeps the data sets library's own bars out of logs and off terminals, where optkit draws its own."""
    from datasets import disable_progress_bars

    disable_progress_bars()


def class_names(tables: Mapping[str, Table], column: str) -> list[str] | None:
    """The class names that the files themselves hold for a label column."""
    return getattr(tables["train"].rows.features.get(column), "names", None)
