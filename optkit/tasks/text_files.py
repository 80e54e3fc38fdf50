"""Text data sets from the hub, and from local parquet, CSV and JSON files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optkit.core.errors import UserError
from optkit.core.task import NO_LABEL
from optkit.tasks.classification import UNLABELLED, with_validation
from optkit.tasks.labels import numbered, read_labels
from optkit.tasks.split_files import (
    SUFFIXES,
    SplitFiles,
    Table,
    files_in,
    hub_tables,
    read_folder,
    read_tables,
    splits_of,
)
from optkit.tasks.split_names import find_tables, needed_for
from optkit.tasks.text_classification import TextClassification
from optkit.tasks.texts import Texts

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class TextFiles(SplitFiles, TextClassification):
    """Texts with labels from the Hugging Face hub, or from local files in `path`.

    Attributes:
        dataset: the hub's id, used when `path` is None.
        text_columns: name of the column of texts; two names make pairs.
        label_column: of class numbers from 0 on, or of class names.
        classes_from: class names in the order of their numbers; None takes those that the files name, or, of a column
            of names, those of the train split in alphabetical order.
    """

    dataset: str | None = None
    text_columns: Sequence[str] = field(default_factory=lambda: ["text"])
    label_column: str = "label"
    classes_from: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.path is None and self.dataset is None:
            raise UserError("missing", key="path", fix="set task.path=DIR, or task.dataset=ID for one of the hub")
        if isinstance(self.text_columns, str) or len(self.text_columns) not in (1, 2):
            message = f"{self.text_columns!r} is not a list of one or two columns"
            raise UserError(message, key="text_columns", value=self.text_columns, fix="for example [sentence]")
        super().__post_init__()

    @property
    def columns(self) -> list[str]:
        return list(self.text_columns)

    def find(self, folder: Path) -> Mapping[str, Sequence[Path]]:
        return find_tables(folder, SUFFIXES)

    def layout(self, split: str) -> str:
        return needed_for(split, Path(str(self.path)), SUFFIXES)

    def find_unlabelled(self, path: Path) -> Sequence[Path]:
        return files_in(path, SUFFIXES)

    def read(self) -> tuple[dict[str, Texts], list[str]]:
        if self.path is not None:
            tables = read_folder(Path(self.path), SUFFIXES)
        else:
            assert self.dataset is not None
            tables = splits_of(hub_tables(self.dataset, self.subset), self.dataset)
        labels = read_labels(tables, self.label_column)
        if "validation" in tables and _unlabelled(labels["test"]):
            # as in GLUE, whose test labels are not public
            log.info("the test split has no labels: validation is the test split, a new one is cut from train")
            tables["test"], labels["test"] = tables.pop("validation"), labels.pop("validation")
        numbers, classes = numbered(tables, labels, self.label_column, self.classes_from)
        splits = {name: texts_of(tables[name], self.text_columns, name, found) for name, found in numbers.items()}
        if self.unlabelled is not None:
            (table,) = read_tables({UNLABELLED: self.find_unlabelled(Path(self.unlabelled))}, UNLABELLED).values()
            splits[UNLABELLED] = texts_of(table, self.text_columns, UNLABELLED, np.full(len(table.rows), NO_LABEL))
        return with_validation(splits, self.validation_share, classes), classes

    def facts(self) -> dict[str, Any]:
        empty = {
            name: sum(not any(map(str.strip, row)) for row in zip(*t.columns, strict=True))
            for name, t in self._read[0].items()
        }
        return super().facts() | {"empty_texts": empty}


def texts_of(table: Table, names: Sequence[str], split: str, labels: NDArray[np.int64]) -> Texts:
    """One or two columns of texts.

    Raises:
        UserError: a cell is no text; the message names its row.
    """
    found = []
    for name in names:
        # an empty cell of a CSV file is read as None
        texts = ["" if text is None else text for text in table.column(name, "text_columns", split)]
        wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
        if wrong is not None:
            message = f"{split}: row {wrong} of '{name}' is no text: {texts[wrong]!r}"
            raise UserError(message, key="task.text_columns", value=name, fix="name another column")
        found.append(texts)
    return Texts(tuple(found), labels)


def _unlabelled(labels: Sequence[Any]) -> bool:
    return all(label in (None, -1, "-1") for label in labels)
