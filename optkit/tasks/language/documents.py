"""The documents of a split, read from a text file or from a column of a table."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, overload

from optkit.core.errors import UserError
from optkit.tasks.split_files import SUFFIXES, Table, files_key, read_tables

TEXT = ".txt"
ALL_SUFFIXES = (TEXT, *SUFFIXES)


@dataclass(frozen=True)
class Documents:
    """The documents of a split in their order.

    Attributes:
        texts: of them.
        key: changes when they do.
    """

    texts: Sequence[str]
    key: str

    @classmethod
    def of(cls, texts: Sequence[str]) -> Documents:
        """Documents in memory."""
        digest = hashlib.sha256()
        for text in texts:
            digest.update(f"{len(text)} ".encode() + text.encode())
        return cls(texts, digest.hexdigest())

    def cut(self, share: float) -> tuple[Documents, Documents]:
        """All but the last share of the documents, and those; of a single document, of its characters."""
        if len(self.texts) > 1:
            place = min(max(1, round(len(self.texts) * (1 - share))), len(self.texts) - 1)
            parts = self.texts[:place], self.texts[place:]
        else:
            text = self.texts[0]
            place = text.rfind("\n", 0, round(len(text) * (1 - share))) + 1 or round(len(text) * (1 - share))
            parts = [text[:place]], [text[place:]]
        return Documents(parts[0], f"{self.key} [:{place}]"), Documents(parts[1], f"{self.key} [{place}:]")


def check_has_text(documents: Documents, split: str) -> None:
    """Raises UserError if no document of a split has any text."""
    if not any(text.strip() for text in documents.texts):
        found = f"all {len(documents.texts)} documents" if len(documents.texts) != 1 else "the only document"
        message = f"{found} of the {split} split {'are' if len(documents.texts) != 1 else 'is'} empty"
        raise UserError(message, key="task", fix="give documents with text")


def read_documents(files: Sequence[Path], column: str, lines: bool, split: str) -> Documents:
    """The documents of a split's files, all of one kind.

    Args:
        files: text files, or tables.
        column: of a table, that holds the texts.
        lines: whether each line of a text file is a document; otherwise each file is one. A blank line is an empty
            document, and others keep their newline, as in the hub's WikiText.
        split: named in errors.

    Raises:
        UserError: a file cannot be read, or has no such column, or the column holds no texts.
    """
    if files[0].suffix.lower() != TEXT:
        (table,) = read_tables({split: files}).values()
        return of_table(table, column, split)
    texts = [_read(file) for file in files]
    if lines:
        texts = [line if line.strip() else "" for text in texts for line in StringIO(text, newline="\n")]
    return Documents(texts, files_key(files, "lines" if lines else "files"))


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}", key="task.path", fix="a text file in UTF-8") from error


def of_table(table: Table, column: str, split: str) -> Documents:
    """A column of texts, which is read as it is asked for.

    Raises:
        UserError: there is no such column, or it holds something else.
    """
    import pyarrow as pa

    cells = table.cells(column, "text_column", split)
    if not (pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type)):
        message = f"{split}: '{column}' holds {cells.type}, and no texts"
        raise UserError(message, key="task.text_column", value=column, fix="name another column")
    return Documents(_Column(cells), f"{table.key} {column}")


class _Column(Sequence[str]):
    """The cells of a column; an empty one is an empty text."""

    AT_ONCE = 1000

    def __init__(self, cells: Any):
        self.cells = cells

    def __len__(self) -> int:
        return len(self.cells)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> _Column: ...
    def __getitem__(self, place: int | slice) -> str | _Column:
        if isinstance(place, slice):
            start, stop, _ = place.indices(len(self))
            return _Column(self.cells.slice(start, max(0, stop - start)))
        return self.cells[place].as_py() or ""

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), self.AT_ONCE):
            yield from (text or "" for text in self.cells.slice(start, self.AT_ONCE).to_pylist())
