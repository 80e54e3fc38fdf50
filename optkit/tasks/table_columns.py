"""Columns of tables of files: picture files, labels that are there or not, and numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optkit.core.checks import check_distinct
from optkit.core.errors import UserError, did_you_mean
from optkit.tasks.pictures import file_below
from optkit.tasks.split_files import Table, read_folder
from optkit.tasks.split_folders import check_folder
from optkit.tasks.split_names import find_tables, needed_for

SUFFIXES = (".csv", ".parquet")
YES_NO = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}


def check_tables(path: str) -> list[str]:
    """The splits that a folder has tables of; raises UserError if train or test is missing."""
    check_folder(path)
    found = find_tables(Path(path), SUFFIXES)
    for split in ("train", "test"):
        if split not in found:
            fix = needed_for(split, Path(path), SUFFIXES)
            raise UserError(f"{path} has no {split} split", key="path", value=path, fix=fix)
    return list(found)


def read_splits(path: str) -> dict[str, Table]:
    """The tables of a folder; raises UserError for one without rows."""
    tables = read_folder(Path(path), SUFFIXES)
    for split, table in tables.items():
        if not len(table.rows):
            raise UserError(f"the {split} table of {path} has no rows", key="task.path", value=path)
    return tables


def picture_files(table: Table, split: str, column: str, folder: Path) -> list[Path]:
    """The files that a column names, below a folder.

    Raises:
        UserError: one that is not there; the message names the row.
    """
    found = []
    for row, name in enumerate(table.column(column, "file_column", split)):
        found.append(file_below(folder, name, f"{split}: row {row} of '{column}'", "task.file_column"))
    return found


def label_columns(table: Table, split: str, columns: Sequence[str]) -> NDArray[np.float32]:
    """Which labels each example has, of a column of 0 and 1 for each, ``(N, labels)``.

    Raises:
        UserError: another value; the message names column and row.
    """
    found = np.zeros((len(table.rows), len(columns)), dtype=np.float32)
    for place, column in enumerate(columns):
        for row, value in enumerate(table.column(column, "label_columns", split)):
            if (number := YES_NO.get(str(value).strip().lower())) is None:
                message = f"{split}: row {row} of '{column}' is {value!r}, not 0 or 1"
                raise UserError(
                    message, key="task.label_columns", value=column, fix="one column of 0 and 1 for each label"
                )
            found[row, place] = number
    return found


def label_lists(table: Table, split: str, column: str, separator: str) -> list[list[str]]:
    """The labels of each example, from a column of lists, or of names with a separator between; none if it is empty."""
    found = []
    for value in table.column(column, "list_column", split):
        names = value if isinstance(value, list) else ("" if value is None else str(value)).split(separator)
        found.append([str(name).strip() for name in names if str(name).strip()])
    return found


def indicators(lists: Mapping[str, Sequence[Sequence[str]]], labels: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """Lists of labels as ``(N, labels)`` of 0 and 1.

    Raises:
        UserError: a label that is none of them; the message names the row.
    """
    number = {name: place for place, name in enumerate(labels)}
    found = {}
    for split, rows in lists.items():
        found[split] = np.zeros((len(rows), len(labels)), dtype=np.float32)
        for row, names in enumerate(rows):
            for name in names:
                if name not in number:
                    message = f"{split}: row {row} has the label '{name}', which is none of the labels"
                    raise UserError(message, key="task.list_column", value=name, fix=did_you_mean(name, labels))
                found[split][row, number[name]] = 1
    return found


def number_columns(table: Table, split: str, columns: Sequence[str], option: str) -> NDArray[np.float64]:
    """Numbers, ``(N, columns)``.

    Args:
        table: of the split.
        split: its name, for errors.
        columns: in their order.
        option: the config key that named them.

    Raises:
        UserError: a cell that is no finite number; the message names column and row.
    """
    found = np.empty((len(table.rows), len(columns)))
    for place, column in enumerate(columns):
        for row, value in enumerate(table.column(column, option, split)):
            number = _number(value)
            if number is None or not math.isfinite(number):
                shown = "empty" if value in (None, "") else repr(value)
                message = f"{split}: row {row} of '{column}' is {shown}, not a finite number"
                raise UserError(message, key=f"task.{option}", value=column, fix="correct the row, or take it out")
            found[row, place] = number
    return found


def named(columns: Any, option: str) -> list[str]:
    """Columns that are named by one text or by several.

    Raises:
        UserError: none is named, or one twice.
    """
    found = [columns] if isinstance(columns, str) else list(columns or ())
    if not found or not all(isinstance(name, str) for name in found):
        raise UserError("no column is named", key=option, value=columns, fix="for example [price]")
    check_distinct(option, found, "name each column once")
    return found


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
