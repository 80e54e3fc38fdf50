"""Code as a part of keys: what changed code made must not be served from the stage store or from a cache."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from optkit.core.imports import digest, file_of, find_module, imported_sources, installed_version

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
def code_of(cls: type) -> tuple[str | None, str]:
    """What stands for the code of a class of another package: that of its module.

    A class without a file (typed into a notebook) is like itself alone, for what it does may change unseen.
    """
    return code_of_module(cls.__module__) or (None, _like_none_other(cls))


def code_of_module(name: str) -> tuple[str | None, str] | None:
    """A version and a SHA-256 that stand for the code of a module; None for a module without a file.

    For an installed package they are its version and the digest of the module's file. Elsewhere there is no version,
    and the digest is of all source files that the module imports, itself included, and of the versions of the installed
    packages that these import (`optkit.core.imports`).
    """
    spec = find_module(name)
    if spec is None or (file := file_of(spec)) is None:
        return None
    if (version := installed_version(spec)) is not None:
        return version, digest(file)
    sources = imported_sources(name)
    state = [sorted(sources.files.items()), sorted(sources.packages.items())]
    return None, hashlib.sha256(json.dumps(state).encode()).hexdigest()


@cache
def _like_none_other(cls: type) -> str:
    return uuid.uuid4().hex


def is_elsewhere(module: str) -> bool:
    """Whether a module is none of Python's, torch's and optkit's own."""
    return module.partition(".")[0] not in ("builtins", "abc", "typing", "torch", "optkit")


def code_elsewhere(kinds: Iterable[type]) -> dict[str, tuple[str | None, str]]:
    """What stands for the code of classes, by module; Python's, torch's and optkit's own left out."""
    by_module = {kind.__module__: kind for kind in kinds if is_elsewhere(kind.__module__)}
    return {module: code_of(kind) for module, kind in sorted(by_module.items())}
