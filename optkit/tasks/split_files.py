"""Data sets in files: the splits of a local folder or of the hub, as tables."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optkit.core.checks import check_share
from optkit.core.compat.datasets import fingerprint
from optkit.core.errors import UserError, did_you_mean, first_line
from optkit.core.memory import available_memory
from optkit.core.paths import FilePath
from optkit.tasks.csv_files import read_csv
from optkit.tasks.split_names import VALIDATION_NAMES, find_tables, log_not_read, needed_for, one_name

log = logging.getLogger(__name__)
KEPT_SHARE = 0.25  # of the free memory, that a table may take
SUFFIXES = (".parquet", ".csv", ".json", ".jsonl")
SEPARATORS = (";", "\t", "|")


def files_key(files: Sequence[Path], *settings: object) -> str:
    """A key that changes when any of the files (by path, size and time) or the settings do."""
    state = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return hashlib.sha256(json.dumps([state, [str(s) for s in settings]]).encode()).hexdigest()[:24]


@dataclass(kw_only=True)
class SplitFiles:
    """What tasks read from files share; a base beside the task's own.

    Attributes:
        path: the local folder.
        subset: of the hub's data set, where it has several.
        validation_share: share of train held out, by class, where there is no validation split.
        unlabelled: a folder or a file of examples without labels, on which stages that distill train as well; those
            that are in validation or test, too, are left out.
    """

    path: FilePath | None = None
    subset: str | None = None
    validation_share: float = 0.1
    unlabelled: FilePath | None = None

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
        found = saved_splits(Path(self.path)) or self.find(Path(self.path))
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
    """A split as it was read.

    Attributes:
        rows: a ``datasets.Dataset``.
        key: changes when its source does.
        is_text: whether its cells are text as it stands in the file, numbers included (CSV).
    """

    rows: Any
    key: str
    is_text: bool = False

    def cells(self, name: str, option: str, split: str) -> Any:
        """A column as it is stored, a ``pyarrow.ChunkedArray``; ``option`` is the config key that named it."""
        names = self.rows.column_names
        if name not in names:
            fix = did_you_mean(name, names)
            if len(names) == 1 and (mark := next((m for m in SEPARATORS if m in names[0]), None)):
                fix = f"its only column is {names[0]!r}: write the file with commas in place of {mark!r}"
            raise UserError(f"{split} has no column '{name}'", key=f"task.{option}", value=name, fix=fix)
        return self.rows.data.column(name)

    def column(self, name: str, option: str, split: str) -> list[Any]:
        """A column's values; ``option`` is the config key that named it."""
        values = self.cells(name, option, split).to_pylist()
        # how values of several types come out of a JSON file
        is_json = type(self.rows.features[name]).__name__ == "Json"
        return [value if value is None else json.loads(value) for value in values] if is_json else values

    def class_names(self, column: str) -> list[str] | None:
        """The class names that the files themselves hold for a label column."""
        return getattr(self.rows.features.get(column), "names", None)


def read_folder(folder: Path, suffixes: Sequence[str]) -> dict[str, Table]:
    """The splits of a folder as tables; the log names files that only begin like a split, and are not read.

    The folder may also be one that ``datasets.DatasetDict.save_to_disk`` wrote.
    """
    if saved_splits(folder):
        from datasets import load_from_disk

        return _by_name(load_from_disk(str(folder)))
    found = find_tables(folder, suffixes)
    log_not_read(folder, suffixes, found)
    return read_tables(found)


def files_in(path: Path, suffixes: Sequence[str]) -> list[Path]:
    """A file of one of these suffixes, or those in a folder.

    Raises:
        UserError: files of several of them.
    """
    files = [path] if path.is_file() else sorted(path.glob("*"))
    files = [file for file in files if file.suffix.lower() in suffixes and not file.name.startswith(".")]
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

    found = {}
    for split, paths in files.items():
        kind, names = paths[0].suffix.lower(), [str(path) for path in paths]
        try:
            with _no_bars():
                if kind == ".csv":
                    rows = Dataset(read_csv(paths))
                elif kind == ".parquet":
                    size = sum(path.stat().st_size for path in paths)
                    # else `datasets` keeps a copy on disk, of which memory holds what is read
                    rows = Dataset.from_parquet(names, keep_in_memory=size <= KEPT_SHARE * available_memory())
                else:
                    rows = Dataset.from_json(names, keep_in_memory=True)
        except (DatasetGenerationError, ValueError, OSError) as error:
            cause = error.__cause__ or error
            reason = first_line(cause)
            which = paths[0] if len(paths) == 1 else f"one of {paths[0]} and {len(paths) - 1} more"
            raise UserError(f"cannot read {which}: {reason}", key=f"task.{option}") from error
        if kind == ".parquet":
            check_class_names(paths)
        found[split] = Table(rows, files_key(paths), kind == ".csv")
    return found


def saved_splits(folder: Path) -> list[str]:
    """The splits of a folder that ``datasets.DatasetDict.save_to_disk`` wrote; none of another."""
    index = folder / "dataset_dict.json"
    return list(json.loads(index.read_text())["splits"]) if index.is_file() else []


def check_source(path: str | None, dataset: str | None) -> None:
    """Raises UserError unless there is a local folder, or the id of a data set of the hub."""
    if path is None and dataset is None:
        raise UserError("missing", key="path", fix="set task.path=DIR, or task.dataset=ID for one of the hub")
    if path is not None and not Path(path).is_dir():
        raise UserError(f"no folder {path}", key="path", value=path, fix="check the path")


def tables_of(path: str | None, dataset: str | None, subset: str | None = None) -> dict[str, Table]:
    """The train, validation and test splits of a local folder, or of a data set of the hub.

    Raises:
        UserError: it cannot be read, or has no train or no test split.
    """
    if path is None:
        assert dataset is not None
        return splits_of(hub_tables(dataset, subset), dataset)
    found = read_folder(Path(path), SUFFIXES)
    for name in ("train", "test"):
        if name not in found:
            fix = needed_for(name, Path(path), SUFFIXES)
            raise UserError(f"{path} has no {name} split", key="task.path", value=path, fix=fix)
    return found


def hub_tables(dataset: str, subset: str | None = None) -> dict[str, Table]:
    """The splits of a data set of the hub, or of one subset of it.

    Raises:
        UserError: it cannot be had.
    """
    from datasets import load_dataset

    try:
        with _no_bars():
            data = load_dataset(dataset, subset)
    except (OSError, ValueError) as error:
        reason = first_line(error)
        fix = "check the network, or give task.path=DIR with train and test files"
        raise UserError(f"cannot load '{dataset}': {reason}", key="task.dataset", fix=fix) from error
    return _by_name(data)


def _by_name(data: Mapping[str, Any]) -> dict[str, Table]:
    """The splits of a ``datasets.DatasetDict``."""
    one_name(name for name in VALIDATION_NAMES if name in data)
    named = {"validation" if name in VALIDATION_NAMES else name: rows for name, rows in data.items()}
    return {name: Table(rows, files_key([], fingerprint(rows))) for name, rows in named.items()}


def splits_of(found: Mapping[str, Table], dataset: str) -> dict[str, Table]:
    """The train, validation and test splits among those that a data set of the hub has.

    Validation is the test split where there is no other; a new validation split is then cut from train.

    Args:
        found: its splits.
        dataset: its id.

    Raises:
        UserError: it has no train split, or neither of the others.
    """
    for names in (("train",), ("test", "validation")):
        if not any(name in found for name in names):
            fix = f"it has {', '.join(found)}; give task.path=DIR with train and test files"
            raise UserError(
                f"'{dataset}' has no {' or '.join(names)} split", key="task.dataset", value=dataset, fix=fix
            )
    splits = {name: table for name, table in found.items() if name in ("train", "validation", "test")}
    if "test" not in splits:
        log.info("'%s' has no test split: validation is the test split, a new one is cut from train", dataset)
        splits["test"] = splits.pop("validation")
    return splits


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without the data sets library's own bars in logs and on terminals, where optkit draws its own."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            enable_progress_bars()


def check_class_names(paths: Sequence[Path]) -> None:
    """Raises UserError if parquet files of one split name their classes differently.

    The names of the first would hold for all of them.
    """
    from datasets import Features
    from pyarrow.parquet import read_schema

    named: dict[str, tuple[Path, list[str]]] = {}
    for path in paths:
        for column, feature in Features.from_arrow_schema(read_schema(path)).items():
            if names := getattr(feature, "names", None):
                first, others = named.setdefault(column, (path, names))
                if names != others:
                    message = f"{path.name} and {first.name} name the classes of '{column}' in another order"
                    raise UserError(message, key="task.path", fix="write the files of a split under the same classes")
