"""Packages whose names are imported when they are first asked for (PEP 562), so that checking a recipe needs no torch.

A package lists its names as imports under ``if TYPE_CHECKING:``, where type checkers and editors read them, and takes
its ``__getattr__`` and ``__dir__`` from `lazy_names`, which reads the same lines.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any


def lazy_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package; a name is looked up once and is an attribute from then on.

    Args:
        package: its ``__name__``. Each ``from MODULE import NAME`` under ``if TYPE_CHECKING:`` gives a name.
    """

    def get(name: str) -> Any:
        module = _homes(package).get(name)
        if module is None:
            raise AttributeError(f"module '{package}' has no attribute '{name}'", name=name, obj=sys.modules[package])
        found = getattr(import_module(module), name)
        setattr(sys.modules[package], name, found)
        return found

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *_homes(package)})

    return get, names


@cache
def _homes(package: str) -> dict[str, str]:
    """The module that each name comes from."""
    tree = ast.parse(Path(str(sys.modules[package].__file__)).read_bytes())
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names if str(node.module) != "typing"}
