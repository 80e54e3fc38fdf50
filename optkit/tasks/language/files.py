"""Texts from local files, and from the hub."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optkit.core.checks import check_share
from optkit.core.errors import UserError
from optkit.core.paths import FilePath
from optkit.tasks.language.documents import ALL_SUFFIXES, Documents, of_table, read_documents
from optkit.tasks.language.task import LanguageTask
from optkit.tasks.split_files import hub_tables, splits_of
from optkit.tasks.split_names import find_tables, log_not_read, needed_for

log = logging.getLogger(__name__)
OPTIONS = ("train", "validation", "test")


@dataclass(kw_only=True)
class Language(LanguageTask):
    """Texts of a folder with ``train.txt`` and ``test.txt``, of single files, or of the hub.

    Files are ``.txt``, ``.jsonl``, ``.json``, ``.csv`` or ``.parquet``. Without a validation split, the last share of
    train is held out. Without a test split, validation is the test split, and another one is held out.

    Attributes:
        path: the folder.
        train: a file in place of the folder's. For calibration alone it may be the validation file.
        validation, test: likewise.
        dataset: the hub's id, used when `path` is None.
        subset: of the hub's data set, where it has several.
        text_column: of tables, that holds the texts.
        lines: whether each line of a text file is a document, as in WikiText; otherwise each file is one.
        validation_share: share of train held out where there is no validation split.
    """

    path: FilePath | None = None
    train: FilePath | None = None
    validation: FilePath | None = None
    test: FilePath | None = None
    dataset: str | None = None
    subset: str | None = None
    text_column: str = "text"
    lines: bool = False
    validation_share: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("validation_share", self.validation_share)
        named = {name: Path(file) for name in OPTIONS if (file := getattr(self, name)) is not None}
        for name, file in named.items():
            if not file.is_file() or file.suffix.lower() not in ALL_SUFFIXES:
                what = f"{file} is none of {', '.join(ALL_SUFFIXES)}" if file.is_file() else f"no file {file}"
                raise UserError(what, key=name, value=str(file), fix="check the path")
        if self.path is not None and not Path(self.path).is_dir():
            raise UserError(f"no folder {self.path}", key="path", value=self.path, fix="check the path")
        found = {} if self.path is None else find_tables(Path(self.path), ALL_SUFFIXES)
        self._files: Mapping[str, Sequence[Path]] = found | {name: [file] for name, file in named.items()}
        if self.path is not None or named:
            self._check_files()
        elif self.dataset is None:
            fix = "set task.path=DIR, task.train=FILE and task.test=FILE, or task.dataset=ID for one of the hub"
            raise UserError("missing", key="path", fix=fix)

    def _check_files(self) -> None:
        where = self.path or "the files named"
        if "train" not in self._files:
            layout = "" if self.path is None else f"{needed_for('train', Path(self.path), ALL_SUFFIXES)}; or "
            fix = f"{layout}task.train=FILE, which for calibration alone may be the validation file"
            raise UserError(f"{where} has no train split", key="path", value=self.path, fix=fix)
        if "test" not in self._files and "validation" not in self._files:
            fix = "add a test file, or task.test=FILE"
            raise UserError(f"{where} has no test split", key="path", value=self.path, fix=fix)
        if "test" not in self._files and self._same("train", "validation"):
            message, fix = "train is the validation file, which is the test split where there is none", "task.test=FILE"
            raise UserError(message, key="train", value=str(self.train), fix=fix)
        if self._same("train", "test"):
            file = str(self._files["train"][0])
            raise UserError("train and test are the same file", key="train", value=file, fix="give another")
        if self._same("validation", "test"):
            file = str(self._files["test"][0])
            raise UserError("validation and test are the same file", key="validation", value=file, fix="leave it out")

    def _same(self, one: str, other: str) -> bool:
        first, second = ({file.resolve() for file in self._files.get(name, ())} for name in (one, other))
        return bool(first & second)

    def read(self) -> dict[str, Documents]:
        found = self._from_files() if self._files else self._from_hub()
        if "test" not in found:
            log.info("there is no test split: validation is the test split, a new one is cut from train")
            found["test"] = found.pop("validation")
        if "validation" not in found:
            found["train"], found["validation"] = found["train"].cut(self.validation_share)
        return found

    def _from_files(self) -> dict[str, Documents]:
        if self.path is not None:
            log_not_read(Path(self.path), ALL_SUFFIXES, {name: list(files) for name, files in self._files.items()})
        return {name: read_documents(files, self.text_column, self.lines, name) for name, files in self._files.items()}

    def _from_hub(self) -> dict[str, Documents]:
        assert self.dataset is not None
        tables = splits_of(hub_tables(self.dataset, self.subset), self.dataset)
        return {name: of_table(table, self.text_column, name) for name, table in tables.items()}

    def facts(self) -> dict[str, Any]:
        shared = {"train_is_validation": True} if self._same("train", "validation") else {}
        return super().facts() | shared
