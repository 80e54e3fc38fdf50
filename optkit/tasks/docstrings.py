"""The embedded default for texts: English from the packages that are installed with optkit."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from optkit.core.cache import kept
from optkit.core.errors import UserError
from optkit.core.progress import track
from optkit.tasks.classification import SPLITS
from optkit.tasks.passages import WORDS, modules, passages, versions_of
from optkit.tasks.text_classification import TextClassification
from optkit.tasks.texts import Texts

# class: the distribution it comes in, and the names by which texts would give it away
LIBRARIES = {
    "networkx": ("networkx", r"networkx|nx"),
    "sklearn": ("scikit-learn", r"scikits?(?:-learn)?|sklearn"),
    "stdlib": (None, r"c?python|stdlib|pep"),
    "sympy": ("sympy", r"sympy"),
    "torch": ("torch", r"(?:py)?torch\w*|aten"),
    "transformers": ("transformers", r"transformers|hugging ?face(?:_hub)?|hf"),
}
MASKED = "library"
COUNTS = {"test": 200, "validation": 50, "train": 1300}
MOST = {"test": 6, "validation": 6, "train": 30}  # passages of one module
FORMAT = 2


@dataclass(kw_only=True)
class Docstrings(TextClassification):
    """Tell the library of a passage of documentation: 6 classes, 1,300 train, 50 validation and 200 test texts each.

    A passage is 40 words of a docstring of the standard library or of a package that comes with optkit. Source files
    are read and never imported. The libraries' names are masked, no two texts open with the same eight words, and all
    texts of a source file are in one split. The sample follows from the installed versions, which the record names.
    """

    vocab_size: int = 4096
    max_length: int = 64

    @cached_property
    def _versions(self) -> dict[str, str]:
        return versions_of({library: distribution for library, (distribution, _) in LIBRARIES.items()})

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"sources": self._versions}

    def read(self) -> tuple[dict[str, Texts], list[str]]:
        state = json.dumps([FORMAT, self._versions, LIBRARIES, COUNTS, MOST, WORDS])
        folder = kept("docstrings", hashlib.sha256(state.encode()).hexdigest()[:24], _sample_to)
        found = json.loads((folder / "texts.json").read_text())
        return {split: Texts((rows["texts"],), np.asarray(rows["labels"])) for split, rows in found.items()}, [
            *LIBRARIES
        ]


@dataclass
class _Sample:
    """Texts and labels of each split as they come together."""

    openings: set[str] = field(default_factory=set)
    texts: dict[str, list[tuple[str, int]]] = field(default_factory=lambda: {split: [] for split in SPLITS})

    def add(self, library: str, label: int) -> None:
        """Fills the splits one after the other, each from modules of its own, in an order without meaning."""
        names = "|".join(pattern for _, pattern in LIBRARIES.values())
        files = modules(library)
        for split, count in COUNTS.items():
            found: list[str] = []
            while len(found) < count:
                module = next(files, None)
                if module is None:
                    message = f"{library} has too few docstrings for its {split} split: {len(found)} of {count}"
                    raise UserError(message, key="task", fix="install it with its sources")
                found += self._new(passages(module, names, MASKED), MOST[split])
            self.texts[split] += [(text, label) for text in found[:count]]

    def _new(self, passages: Iterator[tuple[str, str]], most: int) -> list[str]:
        """The first passages that open as none before them does."""
        found: list[str] = []
        for opening, text in passages:
            if opening not in self.openings:
                self.openings.add(opening)
                found.append(text)
            if len(found) == most:
                break
        return found


def _sample_to(folder: Path) -> None:
    sample, collecting = _Sample(), gc.isenabled()
    gc.disable()  # it would look through every growing syntax tree again and again; these have no cycles
    try:
        for label, library in enumerate(track(LIBRARIES, "reading docstrings", len(LIBRARIES))):
            sample.add(library, label)
    finally:
        if collecting:
            gc.enable()
    out = {}
    for split, rows in sample.texts.items():
        rows.sort(key=lambda row: hashlib.sha256(row[0].encode()).digest())
        out[split] = {"texts": [text for text, _ in rows], "labels": [label for _, label in rows]}
    (folder / "texts.json").write_text(json.dumps(out))
