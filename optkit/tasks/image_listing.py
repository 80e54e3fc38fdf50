"""The images in a folder, and what else is there."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from optkit.core.errors import UserError

log = logging.getLogger(__name__)
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
HIDDEN = "hidden"
# what archivers of other systems leave beside the images
NOT_HERE = ("__MACOSX",)


@dataclass
class Listing:
    """What was found in a folder.

    Attributes:
        images: in the order of their paths.
        left_out: how many other files there are, by suffix; hidden ones under ``hidden``.
    """

    images: list[Path] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


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
    found = Listing()
    for path in _files(folder):
        if kind := _not_read(path, folder):
            found.left_out[kind] += 1
        elif path.exists():
            found.images.append(path)
        else:
            raise UserError(f"{path} is a link to nothing", fix="repair the link, or take it out")
    found.images.sort()
    return found


def list_classes(folder: Path, classes: Sequence[str]) -> Listing:
    """The images of the class folders of a split, class by class, and what else there is, also beside the folders."""
    found = Listing()
    for listing in (list_images(folder / name) for name in classes):
        found.images += listing.images
        found.left_out += listing.left_out
    for path in filter(Path.is_file, folder.iterdir()):
        found.left_out[_not_read(path, folder) or "images beside the class folders"] += 1
    return found


def class_folders(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders in a split's folder that hold images, in the order of their names, and those that hold none."""
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))
    full = [path for path in inside if any(_not_read(file, path) is None for file in _files(path))]
    return full, [path for path in inside if path not in full]


def _not_read(file: Path, folder: Path) -> str | None:
    """Why a file below a folder is not read: that it is hidden, or its suffix; None for an image."""
    if any(map(is_hidden, file.relative_to(folder).parts)):
        return HIDDEN
    suffix = file.suffix.lower()
    return None if suffix in SUFFIXES else suffix or "without a suffix"


def _files(folder: Path) -> Iterator[Path]:
    seen = set[str]()
    for place, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # links may go round in a circle
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (Path(place, name) for name in files)
