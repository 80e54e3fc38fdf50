"""Label columns to class numbers: what tables of texts and of images share."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optkit.core.checks import check_distinct
from optkit.core.errors import UserError, did_you_mean
from optkit.tasks.csv_files import as_numbers
from optkit.tasks.split_files import Table

log = logging.getLogger(__name__)
Labels = dict[str, list[Any]]
KEY = "task.label_column"
SHOWN = 5


def read_labels(tables: Mapping[str, Table], column: str) -> Labels:
    """Each split's labels: class names where the files name the classes, else numbers or names; None is no label.

    Each split is read by its own class names, which may stand in another order than those of train. Cells of CSV files
    are numbers if all labels of all splits are.
    """
    labels = {split: table.column(column, "label_column", split) for split, table in tables.items()}
    named = any(isinstance(v, str) for split, table in tables.items() if not table.is_text for v in labels[split])
    numbers = {split: as_numbers(labels[split]) for split, table in tables.items() if table.is_text}
    if not named:
        found = {split: values for split, values in numbers.items() if values is not None}
        labels |= found if len(found) == len(numbers) else {}
    for split, table in tables.items():
        if names := table.class_names(column):
            labels[split] = [names[v] if isinstance(v, int) and 0 <= v < len(names) else v for v in labels[split]]
    return {split: [None if value == "" else value for value in values] for split, values in labels.items()}


def numbered(
    tables: Mapping[str, Table], labels: Labels, column: str, classes_from: Sequence[str] | None
) -> tuple[dict[str, NDArray[np.int64]], list[str]]:
    """The class numbers ``(N,)`` of each split, and the class names.

    Args:
        tables: the splits, train among them, whose files may name the classes.
        labels: from `read_labels`.
        column: its name.
        classes_from: class names in the order of their numbers; None takes those that the files name, or, of a column
            of names, those of the train split in alphabetical order. Numbers other than 0 to K - 1 are put in order.

    Raises:
        UserError: rows without a label, a label that is neither a number nor one of the classes, a class named twice.
    """
    check_distinct("task.classes_from", classes_from or (), "give each class once")
    for split, values in labels.items():
        _check(split, values, column)
    in_files = next((names for table in _train_first(tables) if (names := table.class_names(column))), None)
    if in_files is not None:
        classes, number = _named_by_files(in_files, classes_from)
        labels = {split: [_name(value, in_files) for value in values] for split, values in labels.items()}
    elif any(isinstance(label, str) for label in labels["train"]):
        classes = list(classes_from or sorted(set(map(str, labels["train"]))))
        number = {name: n for n, name in enumerate(classes)}
        labels = {split: list(map(str, values)) for split, values in labels.items()}
    else:
        classes, number = _of_numbers(labels, column, classes_from)
    return {split: _numbers(split, values, column, number) for split, values in labels.items()}, classes


def _train_first(tables: Mapping[str, Table]) -> list[Table]:
    return [tables["train"], *(table for split, table in tables.items() if split != "train")]


def _check(split: str, values: Sequence[Any], column: str) -> None:
    """Raises UserError unless each label is there, and is a name or a whole number."""
    missing = [row for row, value in enumerate(values) if value is None]
    if missing:
        message = f"{split} has {len(missing)} of {len(values)} rows without a label, row {missing[0]} first"
        raise UserError(message, key=KEY, value=column, fix="take them out; task.unlabelled is for such examples")
    for value in values:
        if not isinstance(value, (str, int, float)) or (isinstance(value, float) and not value.is_integer()):
            message = f"{split} has the label {value!r}, which is no class number"
            raise UserError(message, key=KEY, value=column, fix="name another column")


def _named_by_files(names: list[str], classes_from: Sequence[str] | None) -> tuple[list[str], dict[str, int]]:
    """Classes under the names of the files; `classes_from` gives these another order, or all of them other names."""
    in_files = {name: n for n, name in enumerate(names)}
    if classes_from is None:
        return names, in_files
    given = {name: n for n, name in enumerate(classes_from)}
    if set(names) <= set(given):
        return list(classes_from), given
    if common := set(names) & set(given):
        other = next(name for name in names if name not in given)
        message = f"it has '{min(common)}', but not '{other}', which the files name as well"
        raise UserError(message, key="task.classes_from", fix="give all names of the files, or none of them")
    return list(classes_from), given | in_files


def _name(value: Any, names: Sequence[str]) -> Any:
    """What a number without a name of its own means: the class of this place."""
    return names[int(value)] if not isinstance(value, str) and 0 <= value < len(names) else value


def _of_numbers(labels: Labels, column: str, classes_from: Sequence[str] | None) -> tuple[list[str], dict[Any, int]]:
    """Classes of numbers: these themselves if they are 0 to K - 1, else their places in ascending order.

    Numbers that are more or fewer than `classes_from` stay what they are: `Classification.check` refuses the largest.
    """
    of_split = {split: {int(v) for v in values if not isinstance(v, str)} for split, values in labels.items()}
    present = sorted(number for number in set().union(*of_split.values()) if number >= 0)
    if unseen := sorted(set(present) - of_split["train"]):
        log.warning("no train example has a label of %s, which other splits have", _shown(unseen))
    names = {name: n for n, name in enumerate(classes_from or map(str, present))}
    place = {value: n for n, value in enumerate(present)}
    others = [value for value in present if value >= len(names)]
    if (others and len(names) != len(present)) or (classes_from and not others):
        place = {value: value for value in present}
    elif others:
        log.warning("the labels in '%s' are no 0 to K - 1, and count in this order: %s", column, _shown(present))
    return list(classes_from or map(str, present)), names | place


def _shown(values: Sequence[int]) -> str:
    more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
    return ", ".join(map(str, values[:SHOWN])) + more


def _numbers(split: str, values: Sequence[Any], column: str, number: Mapping[Any, int]) -> NDArray[np.int64]:
    unknown = next((v for v in values if v not in number and (isinstance(v, str) or v >= 0)), None)
    if unknown is not None:
        message = f"{split} has the label {unknown!r}, which is none of the classes"
        raise UserError(message, key=KEY, value=column, fix=did_you_mean(str(unknown), map(str, number)))
    return np.asarray([number.get(v, v) for v in values], dtype=np.int64)
