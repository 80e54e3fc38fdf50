"""Numbers, and lists of labels, in the columns of tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optkit.core.errors import UserError, did_you_mean
from optkit.tasks.csv_files import as_numbers
from optkit.tasks.split_files import Table


def numbers_of(table: Table, columns: Sequence[str], option: str, split: str) -> NDArray[np.float64]:
    """The numbers in columns, each of one number or of a list of numbers a row, side by side: ``(N, numbers)``.

    Raises:
        UserError: a cell is empty or no number, or lists differ in length; the message names the row.
    """
    found = [_column(table, name, option, split) for name in columns]
    return np.concatenate(found, axis=1)


def _column(table: Table, name: str, option: str, split: str) -> NDArray[np.float64]:
    values = table.column(name, option, split)
    if table.is_text:
        values = as_numbers(values) or values
    rows = [value if isinstance(value, (list, tuple)) else [value] for value in values]
    for place, row in enumerate(rows):
        reason = None
        if len(row) != len(rows[0]):
            reason = f"{len(row)} numbers, and row 0 has {len(rows[0])}"
        elif any(isinstance(x, bool) or not isinstance(x, (int, float)) or not np.isfinite(x) for x in row):
            reason = f"no finite number: {values[place]!r}"[:80]
        if reason:
            message = f"{split}: row {place} of '{name}' has {reason}"
            raise UserError(message, key=f"task.{option}", value=name, fix="repair the row, or take it out")
    return np.asarray(rows, dtype=np.float64).reshape(len(rows), -1)


def label_lists(
    tables: Mapping[str, Table], column: str, classes_from: Sequence[str] | None
) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Which labels each example has, ``(N, labels)`` of 0 and 1 in fp32, and the labels' names.

    Args:
        tables: the splits, train among them.
        column: of lists of numbers or names.
        classes_from: the names in their order; None takes those that the files give, else those of train, sorted.

    Raises:
        UserError: a cell that is no list, or a label that is none of the classes.
    """
    lists = {split: table.column(column, "target_columns", split) for split, table in tables.items()}
    for split, rows in lists.items():
        for place, row in enumerate(rows):
            if not isinstance(row, (list, tuple)):
                message = f"{split}: row {place} of '{column}' is no list of labels: {row!r}"[:120]
                fix = "name another column, or set task.target=class"
                raise UserError(message, key="task.target_columns", value=column, fix=fix)
    in_files = {split: _names_in_files(table, column) for split, table in tables.items()}
    present = sorted({label for row in lists["train"] for label in row})
    names = list(map(str, classes_from or in_files["train"] or _all_numbers(present)))
    number: dict[Any, int] = {name: n for n, name in enumerate(names)}
    if not in_files["train"] and all(isinstance(x, int) for x in present):
        number |= {n: n for n in range(len(names))}
    found = {}
    for split, rows in lists.items():
        table = np.zeros((len(rows), len(names)), dtype=np.float32)
        for place, row in enumerate(rows):
            for given in row:
                label = _named(given, in_files[split])
                if label not in number:
                    message = f"{split}: row {place} has the label {label!r}, which is none of the {len(names)} labels"
                    raise UserError(message, key="task.target_columns", fix=did_you_mean(str(label), names))
                table[place, number[label]] = 1
        found[split] = table
    return found, names


def _names_in_files(table: Table, column: str) -> list[str] | None:
    """The names that a split's files give the numbers in its lists; None where they give none."""
    return getattr(getattr(table.rows.features[column], "feature", None), "names", None)


def _named(label: Any, names: Sequence[str] | None) -> Any:
    """The name of a number, where the files have one."""
    return names[label] if names and isinstance(label, int) and 0 <= label < len(names) else label


def _all_numbers(present: Sequence[Any]) -> Sequence[Any]:
    """All numbers up to the largest; names as they are."""
    return range(max(present) + 1) if present and all(isinstance(x, int) for x in present) else present
