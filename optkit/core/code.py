"""Code as a part of keys: what changed code made must not be served from the stage store or from a cache."""

from __future__ import annotations

import hashlib
import sys
import uuid
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent


@cache
def code_digest(*parts: str) -> str:
    """SHA-256, hex, of optkit's own code in these folders and files, named from the package's root."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in code_files(*parts))).hexdigest()


def code_files(*parts: str) -> list[Path]:
    """The Python files in these folders of optkit, and these files."""
    paths = [ROOT / part for part in parts]
    return [file for path in paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]


@cache
def version_of(package: str) -> str | None:
    """The version of an installed package, which is not imported; None where there is none of that name."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def code_of(cls: type) -> tuple[str | None, str]:
    """What stands for the code of a class of another package: the package's version, and the SHA-256 of its file.

    A class without a file (typed into a notebook) is like itself alone, for what it does may change unseen.
    """
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else uuid.uuid4().hex
    return version_of(cls.__module__.partition(".")[0]), digest


def code_elsewhere(kinds: Iterable[type]) -> dict[str, tuple[str | None, str]]:
    """What stands for the code of classes, by module; Python's, torch's and optkit's own left out."""
    own = ("builtins", "abc", "typing", "torch", "optkit")
    return {k.__module__: code_of(k) for k in kinds if k.__module__.partition(".")[0] not in own}
