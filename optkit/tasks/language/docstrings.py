"""The embedded default for language models: documentation of the packages that are installed with optkit."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from optkit.core.cache import kept
from optkit.core.errors import UserError
from optkit.core.progress import track
from optkit.tasks.language.documents import Documents
from optkit.tasks.language.task import LanguageTask
from optkit.tasks.language.token_task import SPLITS
from optkit.tasks.passages import documentation, modules, versions_of

LIBRARIES = {"networkx": "networkx", "sklearn": "scikit-learn", "stdlib": None}  # and the distribution each comes in
CHARACTERS = {"test": 60_000, "validation": 20_000, "train": 600_000}  # of each library, at most
OPENING = 200  # characters by which docstrings count as the same
FORMAT = 2


@dataclass(kw_only=True)
class DocstringsLM(LanguageTask):
    """Documentation to continue: 1.8 million characters to train on, 190,000 to test; no network is needed.

    A document is the docstrings of one source file of the standard library, of networkx or of scikit-learn. Files are
    read and never imported. A docstring that opens as an earlier one does is left out. The text follows from the
    installed versions, which the record names.
    """

    vocab_size: int = 2048
    protocol: str = "blocks-256"

    @cached_property
    def _versions(self) -> dict[str, str]:
        return versions_of(LIBRARIES)

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"sources": self._versions}

    def read(self) -> dict[str, Documents]:
        state = json.dumps([FORMAT, self._versions, LIBRARIES, CHARACTERS, OPENING])
        folder = kept("docstrings_lm", hashlib.sha256(state.encode()).hexdigest()[:24], _gather_to)
        found = json.loads((folder / "documents.json").read_text())
        return {split: Documents.of(found[split]) for split in SPLITS}


@dataclass
class _Gathering:
    """The documents of each split as they come together."""

    openings: set[str] = field(default_factory=set)
    documents: dict[str, list[str]] = field(default_factory=lambda: {split: [] for split in SPLITS})

    def add(self, library: str) -> None:
        """Fills the splits one after the other, each from files of its own, in an order without meaning."""
        files = modules(library)
        for split, most in CHARACTERS.items():
            length = 0
            for document in self._new(files):
                self.documents[split].append(document)
                length += len(document)
                if length >= most:
                    break
            if not length:
                message = f"{library} has too few docstrings for its {split} split"
                raise UserError(message, key="task", fix="install it with its sources")

    def _new(self, files: Iterator[Path]) -> Iterator[str]:
        """The documents of files, without docstrings that open as an earlier one does."""
        for file in files:
            found = []
            for docstring in documentation(file):
                if (opening := docstring[:OPENING]) not in self.openings:
                    self.openings.add(opening)
                    found.append(docstring)
            if found:
                yield "\n\n".join(found)


def _gather_to(folder: Path) -> None:
    gathering, collecting = _Gathering(), gc.isenabled()
    gc.disable()  # it would look through every growing syntax tree again and again; these have no cycles
    try:
        for library in track(LIBRARIES, "reading docstrings", len(LIBRARIES)):
            gathering.add(library)
    finally:
        if collecting:
            gc.enable()
    for documents in gathering.documents.values():  # of one library after the other until here
        documents.sort(key=lambda document: hashlib.sha256(document.encode()).digest())
    (folder / "documents.json").write_text(json.dumps(gathering.documents))
