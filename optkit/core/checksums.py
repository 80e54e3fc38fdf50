"""``entry.json``: the sizes and SHA-256 of a folder's files, written last and checked when the folder is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from optkit.core.cache import write_text

ENTRY = "entry.json"
FORMAT = 1


@dataclass(frozen=True)
class FileSum:
    """Size in bytes and SHA-256 (hex) of one file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Entry:
    """What ``entry.json`` says: the files of a folder by name, and facts for people."""

    files: Mapping[str, FileSum]
    about: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, names: Iterable[str], about: Mapping[str, Any] | None = None) -> Self:
        """The entry of those of the files that are there; reads all of them."""
        paths = [folder / name for name in names if (folder / name).is_file()]
        return cls({path.name: FileSum(path.stat().st_size, sha256(path)) for path in paths}, about or {})

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The inverse of `to_json`; raises ValueError for anything else."""
        try:
            data = json.loads(text)
            if data["format"] != FORMAT:
                raise ValueError(f"written in format {data['format']}, this optkit reads {FORMAT}")
            files = {str(name): FileSum(int(one["size"]), str(one["sha256"])) for name, one in data["files"].items()}
            about = dict(data["about"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no entry of a store: {error}") from error
        if wrong := [name for name in files if Path(name).name != name]:
            raise ValueError(f"{wrong[0]!r} is no file name")
        return cls(files, about)

    def to_json(self) -> str:
        """JSON text."""
        files = {name: asdict(one) for name, one in self.files.items()}
        return json.dumps({"format": FORMAT, "files": files, "about": dict(self.about)}, indent=1) + "\n"

    def save(self, folder: Path) -> None:
        """Writes ``entry.json`` into the folder, in one step."""
        write_text(folder / ENTRY, self.to_json(), "store")

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(one.size for one in self.files.values())

    def damage(self, folder: Path) -> str | None:
        """What of these files is missing or has other bytes; None if nothing is.

        A file is hashed once a process, unless it is changed (1 GB takes about a second).
        """
        for name, expected in self.files.items():
            path = folder / name
            try:
                size = path.stat().st_size
                if size != expected.size:
                    return f"{name} has {size} bytes instead of {expected.size}"
                if sha256(path) != expected.sha256:
                    return f"the bytes of {name} have changed (another SHA-256 than in {ENTRY})"
            except OSError as error:
                return f"{name} cannot be read: {error.strerror}"
        return None


def damage(folder: Path) -> str | None:
    """What is wrong with a folder that has an ``entry.json``; None if nothing is, or if there is no such file."""
    try:
        text = (folder / ENTRY).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{ENTRY} cannot be read: {error.strerror}"
    try:
        return Entry.from_json(text).damage(folder)
    except ValueError as error:
        return f"{ENTRY} cannot be read: {error}"


def sha256(path: Path) -> str:
    """SHA-256 of a file, hex; of a file that has not changed it is known."""
    found = path.stat()
    return _sha256(path.absolute(), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(4096)
def _sha256(path: Path, *identity: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
