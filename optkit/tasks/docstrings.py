"""The embedded default for texts: English from the packages that are installed with optkit."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from optkit.core.cache import kept
from optkit.core.errors import UserError
from optkit.core.progress import track
from optkit.tasks.classification import SPLITS
from optkit.tasks.paragraphs import modules, paragraphs
from optkit.tasks.text_classification import TextClassification
from optkit.tasks.texts import Texts

# class: the distribution it comes in, and the names by which texts would give it away
LIBRARIES = {
    "huggingface_hub": ("huggingface_hub", r"hugging ?face(?:_hub)?|hf"),
    "numpy": ("numpy", r"numpy|np"),
    "pandas": ("pandas", r"pandas|pd"),
    "scipy": ("scipy", r"scipy"),
    "sklearn": ("scikit-learn", r"scikits?(?:-learn)?|sklearn"),
    "stdlib": (None, r"c?python|stdlib|pep"),
    "torch": ("torch", r"(?:py)?torch\w*|aten"),
    "transformers": ("transformers", r"transformers"),
}
MASKED = "library"
COUNTS = {"test": 150, "validation": 50, "train": 400}
MOST = 20  # paragraphs of one module
FORMAT = 1


@dataclass(kw_only=True)
class Docstrings(TextClassification):
    """Which library a paragraph of documentation is from: 8 classes, 400 train, 50 validation and 150 test texts each.

    Paragraphs of prose from the docstrings of the standard library and of packages that come with optkit, read as
    source and never imported; the libraries' names are masked. No two texts open with the same eight words, and all
    texts of a source file are in one split. The sample follows from the installed versions, which the record names.
    """

    vocab_size: int = 4096
    max_length: int = 64

    @cached_property
    def _versions(self) -> dict[str, str]:
        found = {}
        for library, (distribution, _) in LIBRARIES.items():
            try:
                found[library] = metadata.version(distribution) if distribution else platform.python_version()
            except metadata.PackageNotFoundError as error:
                fix = f"pip install {distribution}"
                raise UserError(f"{distribution} is not installed", key="task", fix=fix) from error
        return found

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"sources": self._versions}

    def read(self) -> tuple[dict[str, Texts], list[str]]:
        state = json.dumps([FORMAT, self._versions, LIBRARIES, COUNTS, MOST])
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
        source = self._by_module(library)
        for split, count in COUNTS.items():
            found: list[str] = []
            while len(found) < count:
                of_module = next(source, None)
                if of_module is None:
                    message = f"{library} has too few docstrings for its {split} split: {len(found)} of {count}"
                    raise UserError(message, key="task", fix="install it with its sources")
                found += of_module
            self.texts[split] += [(text, label) for text in found[:count]]

    def _by_module(self, library: str) -> Iterator[list[str]]:
        names = "|".join(pattern for _, pattern in LIBRARIES.values())
        for module in modules(library):
            found = []
            for opening, text in paragraphs(module, names, MASKED):
                if opening not in self.openings and len(found) < MOST:
                    self.openings.add(opening)
                    found.append(text)
            yield found


def _sample_to(folder: Path) -> None:
    sample = _Sample()
    for label, library in enumerate(track(LIBRARIES, "reading docstrings", len(LIBRARIES))):
        sample.add(library, label)
    out = {}
    for split, rows in sample.texts.items():
        rows.sort(key=lambda row: hashlib.sha256(row[0].encode()).digest())
        out[split] = {"texts": [text for text, _ in rows], "labels": [label for _, label in rows]}
    (folder / "texts.json").write_text(json.dumps(out))
