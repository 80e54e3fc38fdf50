"""Passages of documentation from the docstrings of installed packages, which are parsed and never imported."""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator, Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from optkit.core.errors import UserError

# tests, vendored copies of other libraries, and what lies inside the standard library's folder but is none of it
LEFT_OUT = {"test", "tests", "testing", "conftest.py", "_vendor", "externals", "extern", "site-packages", "idlelib"}
LARGEST = 100_000  # bytes; larger files are mostly code
WORDS = 40  # of a passage
OPENING = 8  # words
MARKUP = re.compile(r":\w+:(?=`)|[`*]+")
CODE = re.compile(r">>>|::|```|---|===|https?:|\bcopyright\b|\.\. ", re.IGNORECASE)
Node = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def versions_of(libraries: Mapping[str, str | None]) -> dict[str, str]:
    """The versions of the distributions that libraries come in; None is the standard library.

    Raises:
        UserError: one is not installed.
    """
    found = {}
    for library, distribution in libraries.items():
        try:
            found[library] = metadata.version(distribution) if distribution else platform.python_version()
        except metadata.PackageNotFoundError as error:
            fix = f"pip install {distribution}"
            raise UserError(f"{distribution} is not installed", key="task", fix=fix) from error
    return found


def modules(library: str) -> Iterator[Path]:
    """The source files of an installed package, or of the standard library (``stdlib``), in the order of a hash."""
    if library == "stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
    else:
        spec = find_spec(library)
        assert spec is not None
        assert spec.submodule_search_locations is not None
        root = Path(spec.submodule_search_locations[0])
    names = sorted(_names(root), key=lambda name: hashlib.sha256(name.encode()).digest())
    files = (root / name for name in names)
    yield from (file for file in files if file.stat().st_size <= LARGEST)


def _names(root: Path) -> Iterator[str]:
    """The paths of the source files in a folder, from there."""
    for folder, within, files in os.walk(root):
        within[:] = [name for name in within if name not in LEFT_OUT]
        around = Path(folder).relative_to(root).as_posix()
        prefix = "" if around == "." else f"{around}/"
        yield from (f"{prefix}{name}" for name in files if name.endswith(".py") and name not in LEFT_OUT)


def passages(module: Path, names: str, masked: str) -> Iterator[tuple[str, str]]:
    """Each passage of 40 words in a source file's docstrings, after its first eight words, letters only.

    A passage lies within one docstring. Paragraphs with code, tables, links or copyright notices are left out first.

    Args:
        module: the file; one that is not valid Python has no passages.
        names: a regular expression; the words that match it are masked.
        masked: the word put in their place.
    """
    mask = re.compile(rf"(?<![A-Za-z])(?:{names})(?![A-Za-z])", re.IGNORECASE)
    for docstring in _docstrings(module):
        kept = (part for part in re.split(r"\n\s*\n", docstring) if not CODE.search(part))
        words = mask.sub(masked, MARKUP.sub("", " ".join(kept))).split()
        for start in range(0, len(words) - WORDS + 1, WORDS):
            text = " ".join(words[start : start + WORDS])
            yield " ".join(re.findall("[a-z]+", text.lower())[:OPENING]), text


def documentation(module: Path) -> list[str]:
    """The longer docstrings of a source file as they are, in their order; none of one that is not valid Python."""
    return list(_docstrings(module))


def _docstrings(module: Path) -> Iterator[str]:
    """The docstrings that are long enough for a passage."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(module.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in _nodes(tree):
        docstring = ast.get_docstring(node, clean=False)
        if docstring and len(docstring.split()) >= WORDS:
            yield inspect.cleandoc(docstring)


def _nodes(node: Node) -> Iterator[Node]:
    """A module or class or function, and those written directly in it."""
    yield node
    for inner in node.body:
        if isinstance(inner, Node):
            yield from _nodes(inner)
