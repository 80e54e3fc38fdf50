"""Writes into CONTRIBUTING.md what each folder of optkit/prune and optkit/quantize holds, and which folders it imports.

    python -m scripts.import_map

A folder's description is the first line of its ``__init__.py``. The imports of that file do not count, because it only
gives the folder's public names. Imports for type checkers do not count either.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("prune", "quantize")
MARKED = re.compile(r"(<!-- imports -->\n).*?(<!-- end -->)", re.DOTALL)


def folder_of(parts: tuple[str, ...]) -> str:
    """The folder of a module's path within optkit: whole for the mapped packages, the first name for others."""
    return "/".join(parts) if parts and parts[0] in PACKAGES else parts[0]


def imported(tree: ast.AST) -> Iterator[str]:
    """The modules that a file imports, wherever the statement stands; not those for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        yield from imported(node)


def imports(root: Path) -> dict[str, set[str]]:
    """The folders that each folder of the mapped packages imports, itself left out."""
    found: dict[str, set[str]] = {}
    for path in sorted(file for package in PACKAGES for file in (root / "optkit" / package).rglob("*.py")):
        folder = folder_of(path.parent.relative_to(root / "optkit").parts)
        mine = found.setdefault(folder, set())
        if path.name == "__init__.py":
            continue
        for module in imported(ast.parse(path.read_text(encoding="utf-8"))):
            package, *parts = module.split(".")
            if package != "optkit" or not parts:
                continue
            is_folder = (root / "optkit" / Path(*parts)).is_dir()
            mine.add(folder_of(tuple(parts if is_folder else parts[:-1])) if len(parts) > 1 or is_folder else parts[0])
        mine.discard(folder)
    return found


def drawing(root: Path) -> str:
    """A Markdown table with one line for each folder: what it holds, and which folders it imports."""
    lines = ["| folder | holds | imports |", "|---|---|---|"]
    for folder, others in imports(root).items():
        face = ast.parse((root / "optkit" / folder / "__init__.py").read_text(encoding="utf-8"))
        said = (ast.get_docstring(face) or "").splitlines()[0]
        lines.append(f"| `{folder}/` | {said} | {', '.join(sorted(others)) or 'nothing of optkit'} |")
    return "\n".join(lines) + "\n"


def filled(text: str, root: Path) -> str:
    """CONTRIBUTING.md with the drawing of today's imports."""
    return MARKED.sub(lambda match: match[1] + drawing(root) + match[2], text)


def main() -> None:
    """Writes CONTRIBUTING.md."""
    path = ROOT / "CONTRIBUTING.md"
    path.write_text(filled(path.read_text(encoding="utf-8"), ROOT), encoding="utf-8")


if __name__ == "__main__":
    main()
