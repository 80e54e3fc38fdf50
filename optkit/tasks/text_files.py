"""Text data sets from the hub, and from local parquet, CSV and JSON files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optkit.core.errors import UserError, did_you_mean
from optkit.core.task import NO_LABEL
from optkit.tasks.classification import SPLITS, UNLABELLED, with_validation
from optkit.tasks.split_files import SplitFiles, Table, class_names, files_in, find_tables, hub_tables, read_tables
from optkit.tasks.text_classification import TextClassification
from optkit.tasks.texts import Texts

log = logging.getLogger(__name__)
SUFFIXES = (".parquet", ".csv", ".json", ".jsonl")


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

    def find(self, folder: Path) -> Mapping[str, Sequence[Path]]:
        return find_tables(folder, SUFFIXES)

    def layout(self, split: str) -> str:
        return f"it needs {split}*.parquet, .csv, .json or .jsonl"

    def find_unlabelled(self, path: Path) -> Sequence[Path]:
        return files_in(path, SUFFIXES)

    def read(self) -> tuple[dict[str, Texts], list[str]]:
        if self.path is not None:
            tables = read_tables(self.find(Path(self.path)))
        else:
            assert self.dataset is not None
            tables = {name: table for name, table in hub_tables(self.dataset).items() if name in SPLITS}
        labels = {name: table.column(self.label_column, "label_column", name) for name, table in tables.items()}
        if "test" not in tables or ("validation" in tables and _unlabelled(labels["test"])):
            # as in GLUE, whose test labels are not public
            log.info("the test split has no labels: validation is the test split, a new one is cut from train")
            for of in (tables, labels):
                of["test"] = of.pop("validation", None) or of.get("test")
        classes = self._classes(tables, labels)
        splits = {
            name: self._texts(name, tables[name], numbers) for name, numbers in self._numbers(labels, classes).items()
        }
        if self.unlabelled is not None:
            (table,) = read_tables({UNLABELLED: self.find_unlabelled(Path(self.unlabelled))}, UNLABELLED).values()
            splits[UNLABELLED] = self._texts(UNLABELLED, table, np.full(len(table.rows), NO_LABEL))
        return with_validation(splits, self.validation_share), classes

    def _classes(self, tables: Mapping[str, Table], labels: Mapping[str, Sequence[Any]]) -> list[str]:
        known = self.classes_from or class_names(tables, self.label_column)
        if known:
            return list(known)
        if any(isinstance(label, str) for label in labels["train"]):
            return sorted(set(map(str, labels["train"])))
        return [str(n) for n in range(max(map(int, labels["train"])) + 1)]

    def _numbers(self, labels: Mapping[str, Sequence[Any]], classes: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        number = {name: n for n, name in enumerate(classes)}
        found = {}
        for split, values in labels.items():
            unknown = [v for v in values if v is None or (isinstance(v, str) and v not in number)]
            if unknown:
                fix = did_you_mean(str(unknown[0]), classes)
                message = f"{split} has the label {unknown[0]!r}, which is none of the classes"
                raise UserError(message, key="task.label_column", value=self.label_column, fix=fix)
            broken = next((v for v in values if isinstance(v, float) and not v.is_integer()), None)
            if broken is not None:
                message = f"{split} has the label {broken!r}, which is no class number"
                raise UserError(message, key="task.label_column", value=self.label_column, fix="name another column")
            found[split] = np.asarray([number[v] if isinstance(v, str) else int(v) for v in values], dtype=np.int64)
        return found

    def _texts(self, split: str, table: Table, labels: NDArray[np.int64]) -> Texts:
        columns = [table.column(name, "text_columns", split) for name in self.text_columns]
        found = []
        for name, column in zip(self.text_columns, columns, strict=True):
            texts = ["" if text is None else text for text in column]  # an empty cell of a CSV file is read as None
            wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
            if wrong is not None:
                message = f"{split}: row {wrong} of '{name}' is no text: {texts[wrong]!r}"
                raise UserError(message, key="task.text_columns", value=name, fix="name another column")
            found.append(texts)
        return Texts(tuple(found), labels)

    def facts(self) -> dict[str, Any]:
        empty = {
            name: sum(not any(map(str.strip, row)) for row in zip(*t.columns, strict=True))
            for name, t in self._read[0].items()
        }
        return super().facts() | {"empty_texts": empty}


def _unlabelled(labels: Sequence[Any]) -> bool:
    return all(label is None or label == -1 for label in labels)
