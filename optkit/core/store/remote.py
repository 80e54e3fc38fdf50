"""Entries in a file system of fsspec: files first, under names that hold their checksum, then the manifest.

``entries/ID/`` holds ``SHA256-NAME`` for each file, and ``entry.json``, which is written last: an entry without it is
absent. Two writers never write one file with other bytes, so whichever manifest stands is of whole files.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from optkit.core.checksums import ENTRY, Entry, FileSum, sha256
from optkit.core.errors import OptkitError, StageError, first_line

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

log = logging.getLogger(__name__)
ENTRIES, LEASES, SET_ASIDE = "entries", "leases", "damaged.json"
DIGITS = 16  # of a file's SHA-256 in its name
T = TypeVar("T")


class Damaged(Exception):  # noqa: N818
    """A downloaded file is not what the manifest says."""


@dataclass
class Remote:
    """A store in a file system.

    Attributes:
        fs: the file system, without a cache of listings.
        root: the path of the store in it.
        url: of the store, for messages.
        read_only: nothing can be written.
    """

    fs: AbstractFileSystem
    root: str
    url: str
    read_only: bool = False
    _refused: set[str] = field(default_factory=set)

    def path(self, *parts: str) -> str:
        """A path within the store."""
        return "/".join((self.root.rstrip("/"), *parts))

    def lease(self, variant_id: str) -> str:
        """The path of the lease of an entry."""
        return self.path(LEASES, f"{variant_id}.json")

    def entry(self, variant_id: str) -> Entry | None:
        """The manifest of an entry; None if it is absent, or was found to be damaged."""
        if variant_id in self._refused:
            return None
        path = self.path(ENTRIES, variant_id, ENTRY)
        try:
            text = self._ask(partial(self.fs.cat_file, path))
        except FileNotFoundError:
            return None
        try:
            return Entry.from_json(text)
        except ValueError as error:
            if text:  # an empty one is being written
                log.warning("%s/%s/%s/%s is not used: %s", self.url, ENTRIES, variant_id, ENTRY, error)
            return None

    def upload(self, variant_id: str, folder: Path, entry: Entry) -> None:
        """Puts an entry: its files, then its manifest. What it raises is the file system's own."""
        self.fs.makedirs(self.path(ENTRIES, variant_id), exist_ok=True)
        for name, one in entry.files.items():
            self.fs.put_file(str(folder / name), self.object(variant_id, name, one))
        self.fs.pipe_file(self.path(ENTRIES, variant_id, ENTRY), entry.to_json().encode())
        self._refused.discard(variant_id)

    def download(self, variant_id: str, entry: Entry, folder: Path) -> None:
        """Writes an entry's checked files into a folder.

        Raises:
            Damaged: a file is missing, or has other bytes than the manifest says.
        """
        for name, one in entry.files.items():
            path, source = folder / name, self.object(variant_id, name, one)
            try:
                self._ask(partial(self.fs.get_file, source, str(path)))
            except FileNotFoundError:
                raise Damaged(f"{name} is missing") from None
            if (size := path.stat().st_size) != one.size:
                raise Damaged(f"{name} has {size} bytes instead of {one.size}")
            if sha256(path) != one.sha256:
                raise Damaged(f"the bytes of {name} have changed (another SHA-256 than in {ENTRY})")
        entry.save(folder)

    def set_aside(self, variant_id: str) -> None:
        """Makes a damaged entry absent: its manifest is renamed; this process ignores it in any case."""
        self._refused.add(variant_id)
        if self.read_only:
            return
        try:
            self.fs.mv(self.path(ENTRIES, variant_id, ENTRY), self.path(ENTRIES, variant_id, SET_ASIDE))
        except Exception as error:  # noqa: BLE001 - each file system raises its own
            log.warning("%s: entry %s cannot be set aside: %s", self.url, variant_id, first_line(error))

    def object(self, variant_id: str, name: str, one: FileSum) -> str:
        """The path of a file of an entry."""
        return self.path(ENTRIES, variant_id, f"{one.sha256[:DIGITS]}-{name}")

    def _ask(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except (FileNotFoundError, OptkitError):
            raise
        except Exception as error:
            fix = "check the network and your rights; the same command continues"
            raise StageError(f"cannot read {self.url}: {first_line(error)}", fix=fix) from error
