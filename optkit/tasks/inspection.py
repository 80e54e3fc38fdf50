"""Looks at every file of a data set once, before anything is trained, and keeps what it found."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from optkit.core.cache import kept, read_json, write_json
from optkit.core.progress import track
from optkit.tasks.split_files import files_key

FOUND = "found.json"
FORMAT = 1  # of what is kept: raise it when a look finds something else


def inspected(kind: str, files: Sequence[Sequence[Path]], look: Callable[[int], Any], what: str) -> list[Any]:
    """What a look at each example found, JSON; looked at again only when a file has changed.

    Args:
        kind: of the look.
        files: of each example.
        look: takes an example's place; raises UserError for what cannot be used.
        what: for the progress bar.
    """

    def make(folder: Path) -> None:
        with ThreadPoolExecutor() as threads:
            found = list(track(threads.map(look, range(len(files))), f"checking {what}", len(files)))
        write_json(folder / FOUND, found, "OPTKIT_CACHE")

    key = files_key([path for example in files for path in example], kind, FORMAT)
    return read_json(kept("checked", key, make) / FOUND)


def content_hash(path: Path) -> str:
    """A hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
