"""Label columns to class numbers: what tables of texts and of images share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optkit.core.errors import UserError, did_you_mean
from optkit.tasks.split_files import Table, class_names

Labels = Mapping[str, Sequence[Any]]
KEY = "task.label_column"


def numbered(
    tables: Mapping[str, Table], labels: Labels, column: str, classes_from: Sequence[str] | None
) -> tuple[dict[str, NDArray[np.int64]], list[str]]:
    """The class numbers ``(N,)`` of each split, and the class names.

    Args:
        tables: the splits, train among them, whose files may name the classes.
        labels: each split's values of the column: class numbers, or names.
        column: its name.
        classes_from: class names in the order of their numbers; None takes those that the files name, or, of a column
            of names, those of the train split in alphabetical order.

    Raises:
        UserError: rows without a label, or a label that is neither a number nor one of the classes.
    """
    for split, values in labels.items():
        missing = [row for row, value in enumerate(values) if value is None]
        if missing:
            message = f"{split} has {len(missing)} of {len(values)} rows without a label, row {missing[0]} first"
            raise UserError(message, key=KEY, value=column, fix="take them out; task.unlabelled is for such examples")
    classes = list(classes_from or class_names(tables, column) or _classes(labels))
    return {split: _numbers(split, values, column, classes) for split, values in labels.items()}, classes


def _classes(labels: Mapping[str, Sequence[Any]]) -> list[str]:
    """Names are those that train has; numbers go up to the largest of any split."""
    if any(isinstance(label, str) for label in labels["train"]):
        return sorted(set(map(str, labels["train"])))
    numbers = [label for values in labels.values() for label in values if not isinstance(label, str)]
    return [str(n) for n in range(max(map(int, numbers)) + 1)]


def _numbers(split: str, values: Sequence[Any], column: str, classes: Sequence[str]) -> NDArray[np.int64]:
    number = {name: n for n, name in enumerate(classes)}
    unknown = next((v for v in values if isinstance(v, str) and v not in number), None)
    if unknown is not None:
        message = f"{split} has the label {unknown!r}, which is none of the classes"
        raise UserError(message, key=KEY, value=column, fix=did_you_mean(unknown, classes))
    broken = next((v for v in values if isinstance(v, float) and not v.is_integer()), None)
    if broken is not None:
        message = f"{split} has the label {broken!r}, which is no class number"
        raise UserError(message, key=KEY, value=column, fix="name another column")
    return np.asarray([number[v] if isinstance(v, str) else int(v) for v in values], dtype=np.int64)
