"""Passages of documentation from the docstrings of installed packages, which are parsed and never imported."""

from __future__ import annotations

import ast
import gc
import hashlib
import re
import sysconfig
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

# tests, vendored copies of other libraries, and what lies inside the standard library's folder but is none of it
LEFT_OUT = {"test", "tests", "testing", "conftest.py", "_vendor", "externals", "extern", "site-packages", "idlelib"}
LARGEST = 100_000  # bytes; larger files are mostly code
WORDS = 40  # of a passage
OPENING = 8  # words
MARKUP = re.compile(r":\w+:(?=`)|[`*]+")
CODE = re.compile(r">>>|::|```|---|===|https?:|\bcopyright\b|\.\. ", re.IGNORECASE)
Node = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def modules(library: str) -> Iterator[Path]:
    """The source files of an installed package, or of the standard library (``stdlib``), in the order of a hash."""
    if library == "stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
    else:
        spec = find_spec(library)
        assert spec is not None
        assert spec.submodule_search_locations is not None
        root = Path(spec.submodule_search_locations[0])
    found = {file.relative_to(root): file for file in root.rglob("*.py")}
    names = sorted(found, key=lambda name: hashlib.sha256(name.as_posix().encode()).digest())
    for name in names:
        if not LEFT_OUT & set(name.parts) and found[name].stat().st_size <= LARGEST:
            yield found[name]


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


def _docstrings(module: Path) -> Iterator[str]:
    collecting = gc.isenabled()
    gc.disable()  # it would look through the growing tree again and again
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(module.read_bytes())
    except (SyntaxError, ValueError):
        return
    finally:
        if collecting:
            gc.enable()
    for node in _nodes(tree):
        if docstring := ast.get_docstring(node):
            yield docstring


def _nodes(node: Node) -> Iterator[Node]:
    """A module or class or function, and those written directly in it."""
    yield node
    for inner in node.body:
        if isinstance(inner, Node):
            yield from _nodes(inner)
