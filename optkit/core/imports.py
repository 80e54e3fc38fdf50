"""What a module imports, found in its source without running it: files that may change, and versions of packages.

Imports are followed wherever they stand: at the top, under a condition, in a function. A name that is computed at run
time (``importlib.import_module(name)``) cannot be seen.
"""

from __future__ import annotations

import ast
import hashlib
import logging
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from importlib.machinery import SOURCE_SUFFIXES, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sources:
    """What the code of a module consists of.

    Attributes:
        files: digest of the file of each module that is reached, the first included, by module name.
        packages: version of each installed package that these modules import, by import name; None for one that is not
            installed.
    """

    files: dict[str, str] = field(default_factory=dict)
    packages: dict[str, str | None] = field(default_factory=dict)


def digest(file: Path) -> str:
    """SHA-256, hex, of one file of code."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def imported_sources(module: str) -> Sources:
    """The source files that a module runs, and the versions of the installed packages that these import.

    The standard library is left out. An installed package counts by its version and is not followed; one that is
    installed as editable is source. A package's ``__init__`` runs before its modules, so it counts with them.
    """
    found, seen, todo = Sources(), set[str](), [module]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        if parent := name.rpartition(".")[0]:
            todo.append(parent)
        spec = find_module(name)
        if spec is None:
            if "." not in name:
                found.packages[name] = None
        elif (file := file_of(spec)) is None or _is_standard(file):
            continue
        elif (version := installed_version(spec)) is not None:
            found.packages[name.partition(".")[0]] = version
        else:
            source = _source(spec, file, sys.modules.get(name))
            found.files[spec.name] = source.digest
            todo += source.imports
    return found


def find_module(name: str) -> ModuleSpec | None:
    """Where a module is, as Python would find it, without running it or the packages around it; None if nowhere."""
    if name in sys.modules:
        return _spec_of_loaded(name)
    parent = name.rpartition(".")[0]
    around = find_module(parent) if parent else None
    if parent and (around is None or around.submodule_search_locations is None):
        return None
    within: Sequence[str] | None = None if around is None else around.submodule_search_locations
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, within) if hasattr(finder, "find_spec") else None
        except ImportError:  # how a finder says that this name is not to be had
            return None
        if spec is not None:
            return spec
    return None


def file_of(spec: ModuleSpec) -> Path | None:
    """The file of a module, or the archive it is in; None for a namespace package and for what is built into Python."""
    file = Path(spec.origin) if spec.has_location and spec.origin else None
    return None if file is None else next((path for path in (file, *file.parents) if path.is_file()), None)


def installed_version(spec: ModuleSpec) -> str | None:
    """The version of the installed distribution that a module's file belongs to; None for source, editable included."""
    if (file := file_of(spec)) is None:
        return None
    installed = _installed(spec.name.partition(".")[0])
    return next((version for root, version in installed if file.resolve().is_relative_to(root)), None)


@dataclass(frozen=True)
class _Source:
    digest: str
    imports: tuple[str, ...]


class _Load:
    """One loading of a module; a reload gives it another spec."""

    def __init__(self, module: ModuleType):
        self.of = getattr(module, "__spec__", None) or module

    def __hash__(self) -> int:
        return id(self.of)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Load) and self.of is other.of


def _source(spec: ModuleSpec, file: Path, loaded: ModuleType | None) -> _Source:
    """A module's source: of a loaded one what was seen first, as an edit does not change what this process runs."""
    is_package = spec.submodule_search_locations is not None
    package = spec.name if is_package else spec.name.rpartition(".")[0]
    return _read(file, package) if loaded is None else _read_once(file, package, _Load(loaded))


@cache
def _read_once(file: Path, package: str, load: _Load) -> _Source:
    return _read(file, package)


def _read(file: Path, package: str) -> _Source:
    if file.suffix not in SOURCE_SUFFIXES:
        return _Source(digest(file), ())
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        log.warning("%s, line %s, is not valid Python (%s): what it imports is not followed", file, line, error)
        return _Source(digest(file), ())
    return _Source(digest(file), tuple(dict.fromkeys(_imports(tree, package))))


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    """The modules that a module may import, and names in them, which may be modules, too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            around = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join(filter(None, [*around, node.module or ""]))
            if base and (around or not node.level):
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")


def _spec_of_loaded(name: str) -> ModuleSpec | None:
    module = sys.modules[name]
    spec = getattr(module, "__spec__", None)
    if spec is None and (file := getattr(module, "__file__", None)):  # a script
        return spec_from_file_location(name, file)
    return spec


@cache
def _distributions() -> dict[str, list[str]]:
    return dict(metadata.packages_distributions())


@cache
def _installed(package: str) -> list[tuple[Path, str]]:
    """The folder and version of each installation of a package that is not editable, by its import name."""
    found = []
    for name in _distributions().get(package, ()):
        distribution = metadata.distribution(name)
        root = Path(str(distribution.locate_file(""))).resolve()
        # a checkout may hold an egg-info folder, which has no record of installed files
        if distribution.read_text("RECORD") is not None or _lies_in(root, _site_folders()):
            found.append((root, distribution.version))
    return found


@cache
def _site_folders() -> list[Path]:
    paths = sysconfig.get_paths()
    folders = (*site.getsitepackages(), site.getusersitepackages(), paths["purelib"], paths["platlib"])
    return [Path(folder).resolve() for folder in folders]


@cache
def _standard_folders() -> list[Path]:
    return [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")]


def _is_standard(file: Path) -> bool:
    return _lies_in(file.resolve(), _standard_folders()) and not _lies_in(file.resolve(), _site_folders())


def _lies_in(path: Path, folders: Iterable[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)
