"""Code as a part of keys: what changed code made must not be served from the stage store or from a cache."""

from __future__ import annotations

import hashlib
import json
import sys
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

from optkit.core.imports import OWN, digest, file_of, find_module, imported_sources, installed_version

# Packages whose versions are in no key, though code that is in keys imports them. They show progress, lock files, or
# describe the machine; or they read and write what keys hash by its content: data, weights and tables of latencies.
# Every other package counts: one that is missing here costs a stage that is made again, never a wrong result.
DECIDE_NOTHING = frozenset(
    {
        "datasets",
        "filelock",
        "huggingface_hub",
        "packaging",
        "psutil",
        "pyarrow",
        "pynvml",
        "rich",
        "safetensors",
        "yaml",
    }
)

# what was found of modules, by name; None where it is looked for anew each time
_FOUND: ContextVar[dict[str, tuple[str | None, str] | None] | None] = ContextVar("found code", default=None)

# Modules that find code by its name. What a stage finds there, it returns from ``depends_on``.
FIND_BY_NAME = frozenset({"optkit.engines.registry", "optkit.quantize.graph.targets.registry"})

# Modules that say which code runs, and decide nothing themselves.
SAY_WHICH = frozenset({"optkit.core.version", "optkit.core.git"})


def code_of(cls: type) -> tuple[str | None, str]:
    """What stands for the code of a class: that of its module.

    A class without a file (typed into a notebook) is like itself alone, for what it does may change unseen.
    """
    return code_of_module(cls.__module__) or (None, _like_none_other(cls))


@contextmanager
def unchanging_code() -> Iterator[None]:
    """Within, what stands for the code of a module is found once, as for many plans that are made in a row."""
    token = _FOUND.set({})
    try:
        yield
    finally:
        _FOUND.reset(token)


def code_of_module(name: str) -> tuple[str | None, str] | None:
    """A version and a SHA-256 that stand for the code of a module; None for a module without a file.

    For an installed package they are its version and the digest of the module's file. For optkit itself, and for source
    that is not installed, there is no version. The digest is of all source files that the module imports, itself
    included, by their meaning (`optkit.core.imports`). It is also of the versions of the installed packages that these
    files import, without those that decide nothing (`DECIDE_NOTHING`). What is found by name is left out, too
    (`FIND_BY_NAME`), and so is the version of optkit (`SAY_WHICH`).
    """
    found = _FOUND.get()
    if found is None:
        return _code_of_module(name)
    if name not in found:
        found[name] = _code_of_module(name)
    return found[name]


def _code_of_module(name: str) -> tuple[str | None, str] | None:
    spec = find_module(name)
    if spec is None or (file := file_of(spec)) is None:
        return None
    if (version := installed_version(spec)) is not None:
        return version, digest(file)
    sources = imported_sources(name, without=FIND_BY_NAME | SAY_WHICH)
    packages = {name: version for name, version in sources.packages.items() if name not in DECIDE_NOTHING}
    state = [sorted(sources.files.items()), sorted(packages.items())]
    return None, hashlib.sha256(json.dumps(state).encode()).hexdigest()


@cache
def _like_none_other(thing: type | str) -> str:
    return uuid.uuid4().hex


def code_of_classes(kinds: Iterable[type]) -> dict[str, tuple[str | None, str]]:
    """What stands for the code of classes, by module; Python's and torch's own left out."""
    by_module = {kind.__module__: kind for kind in kinds if _top(kind) not in (*sys.stdlib_module_names, "torch")}
    return {module: code_of(kind) for module, kind in sorted(by_module.items())}


def code_of_paths(paths: Iterable[str]) -> dict[str, tuple[str | None, str]]:
    """What stands for the code of functions and classes that are named by dotted paths, by path; torch's left out."""
    found = {}
    for path in sorted(set(paths)):
        module = path.rpartition(".")[0]
        if module.partition(".")[0] not in (*sys.stdlib_module_names, "torch"):
            found[path] = code_of_module(module) or (None, _like_none_other(path))
    return found


def code_elsewhere(kinds: Iterable[type]) -> dict[str, tuple[str | None, str]]:
    """The same, optkit's own left out."""
    return code_of_classes(kind for kind in kinds if _top(kind) != OWN)


def _top(cls: type) -> str:
    return cls.__module__.partition(".")[0]
