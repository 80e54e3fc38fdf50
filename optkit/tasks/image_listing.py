"""The images in a folder, and what else is there; a million of them in seconds."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from optkit.core.errors import UserError

log = logging.getLogger(__name__)
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
KNOWN = frozenset(SUFFIXES)
HIDDEN = "hidden"
# what archivers of other systems leave beside the images
NOT_HERE = ("__MACOSX",)
THREADS = 4  # that list folders at once, of a disk that is waited for; of any other they would wait for one another
WAITING = 0.8  # share of the time of a listing by one thread, from which on it is such a disk
NOTICED_S = 0.2  # after how long that is looked at


@dataclass(frozen=True)
class Files(Sequence[Path]):
    """Paths, sizes and times of files, in a few arrays: objects would be copied into every worker one by one.

    Attributes:
        folder: that the paths are given from.
        names: the paths, one after the other, as UTF-8.
        starts, ends: of each path in `names` ``(N,)``.
        sizes: in bytes ``(N,)``.
        times: of the last change, in ns ``(N,)``.
    """

    folder: str
    names: NDArray[np.uint8]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    sizes: NDArray[np.int64]
    times: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, place: int) -> Path: ...
    @overload
    def __getitem__(self, place: slice) -> Files: ...
    def __getitem__(self, place: int | slice) -> Path | Files:
        if isinstance(place, slice):
            return self.subset(np.arange(len(self))[place])
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        return Path(self.folder, self.name(place))

    def name(self, place: int) -> str:
        """The path of a file from the folder."""
        return os.fsdecode(self.names[self.starts[place] : self.ends[place]].tobytes())

    def subset(self, index: NDArray[np.int64]) -> Files:
        parts = {part: getattr(self, part)[index] for part in ("starts", "ends", "sizes", "times")}
        return replace(self, **parts)

    def digest(self) -> str:
        """Hash of the paths from the folder, the sizes and the times, and of those among which these were chosen."""
        digest = hashlib.blake2b(str(len(self)).encode(), digest_size=16)
        for array in (self.names, self.starts, self.ends, self.sizes, self.times):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def hashes(self) -> list[bytes]:
        """What tells one file from another: its path."""
        return [os.fsencode(os.path.realpath(path)) for path in self]

    @classmethod
    def of(cls, folder: str, found: Sequence[tuple[str, int, int]]) -> Files:
        """Files of their paths from the folder, sizes and times."""
        if not found:
            none = np.zeros(0, np.int64)
            return cls(folder, np.zeros(0, np.uint8), none, none, none, none)
        names, sizes, times = zip(*found, strict=True)
        joined = np.frombuffer(os.fsencode("\0".join(names) + "\0"), np.uint8)  # encoded at once, which is far cheaper
        ends = np.flatnonzero(joined == 0)
        starts = np.concatenate([[0], ends[:-1] + 1])
        return cls(folder, joined, starts, ends, np.array(sizes, np.int64), np.array(times, np.int64))

    @classmethod
    def one(cls, file: Path) -> Files:
        """A single file."""
        state = file.stat()
        return cls.of(str(file.parent), [(file.name, state.st_size, state.st_mtime_ns)])

    @classmethod
    def joined(cls, folder: str, parts: Sequence[Files]) -> Files:
        """Files whose paths are all given from one folder."""
        shifts = np.cumsum([0, *(len(part.names) for part in parts)])[:-1]
        moved = [
            replace(part, starts=part.starts + n, ends=part.ends + n) for part, n in zip(parts, shifts, strict=True)
        ]
        empty = cls.of(folder, [])
        columns = ("names", "starts", "ends", "sizes", "times")
        return cls(folder, *(np.concatenate([getattr(part, name) for part in [empty, *moved]]) for name in columns))


@dataclass
class Listing:
    """What was found in a folder.

    Attributes:
        images: in the order of their paths.
        left_out: how many other files there are, by suffix; hidden ones under ``hidden``.
    """

    images: Files
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass
class ClassListing(Listing):
    """What was found in a split's folder of class folders.

    Attributes:
        classes: the names of the folders with images, in their order.
        counts: how many images each has.
        empty: the names of the folders without.
    """

    classes: list[str] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)


def log_left_out(folder: Path, left_out: Counter[str]) -> None:
    """Says once which files of a folder were not read, if there are any."""
    if left_out:
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
        log.warning("%s: left out %d files: %s (%s are read)", folder, left_out.total(), counts, " ".join(SUFFIXES))


def is_hidden(name: str) -> bool:
    """Whether a file or folder is kept out of sight: by a dot, or by an archiver."""
    return name.startswith(".") or name in NOT_HERE


def list_images(folder: Path) -> Listing:
    """The images in a folder and in those below it, links followed, each folder once.

    Raises:
        UserError: a link to an image that is not there.
    """
    return _listed(str(folder), "")


def list_classes(folder: Path) -> ClassListing:
    """The images of a split's class folders, class by class, and what else there is, also beside the folders."""
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    inside = [entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name)]
    listings = _each_listed(str(folder), inside)
    full = {name: listing for name, listing in zip(inside, listings, strict=True) if len(listing.images)}
    left_out = sum((listing.left_out for listing in full.values()), Counter[str]())
    for entry in entries:
        if entry.is_file():
            left_out[_not_read(entry.name) or "images beside the class folders"] += 1
    images = Files.joined(str(folder), [listing.images for listing in full.values()])
    counts = [len(listing.images) for listing in full.values()]
    return ClassListing(images, left_out, list(full), counts, [name for name in inside if name not in full])


def _each_listed(folder: str, names: Sequence[str]) -> list[Listing]:
    """The images in folders below one: by several threads as soon as one is seen to wait for the disk."""
    found: list[Listing] = []
    started, worked = time.perf_counter(), time.thread_time()
    for name in names:
        found.append(_listed(folder, name))
        taken, busy = time.perf_counter() - started, time.thread_time() - worked
        if taken > NOTICED_S and busy < (1 - WAITING) * taken:
            break
    with ThreadPoolExecutor(THREADS) as pool:
        return found + list(pool.map(lambda name: _listed(folder, name), names[len(found) :]))


def _listed(folder: str, below: str) -> Listing:
    """The images in a folder, or in one below it, with their paths from the folder."""
    found: list[tuple[str, int, int]] = []
    left_out = Counter[str]()
    seen = set[str]()
    todo = [(below, False)]
    while todo:
        place, hidden = todo.pop()
        path = os.path.join(folder, place)
        if (real := os.path.realpath(path)) in seen:  # links may go round in a circle
            continue
        seen.add(real)
        prefix = f"{place}/" if place else ""
        with os.scandir(path) as entries:
            for entry in entries:
                name = entry.name
                if entry.is_dir():
                    todo.append((prefix + name, hidden or is_hidden(name)))
                elif kind := HIDDEN if hidden else _not_read(name):
                    left_out[kind] += 1
                else:
                    state = _state(entry)
                    found.append((prefix + name, state.st_size, state.st_mtime_ns))
    # as paths sort: by their parts
    found.sort(key=(lambda file: file[0].split("/")) if len(seen) > 1 else None)
    return Listing(Files.of(folder, found), left_out)


def _state(entry: os.DirEntry[str]) -> os.stat_result:
    try:
        return entry.stat()
    except FileNotFoundError as error:
        fix = "repair the link, or take it out"
        raise UserError(f"{entry.path} is a link to nothing", fix=fix) from error


def _not_read(name: str) -> str | None:
    """Why a file is not read: that it is hidden, or its suffix; None for an image."""
    if name[0] == "." or name in NOT_HERE:
        return HIDDEN
    suffix = name[name.rfind(".") :].lower() if "." in name[:-1] else ""
    return None if suffix in KNOWN else suffix.rstrip(".") or "without a suffix"
