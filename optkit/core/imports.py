"""What a module imports, found in its source without running it: files that may change, and versions of packages.

Imports are followed wherever they stand: at the top, under a condition, in a function. Those under ``if
TYPE_CHECKING:`` are left out, because they never run. A name that is computed at run time
(``importlib.import_module(name)``) cannot be seen.

A package's ``__init__`` runs before its modules. One that does nothing but bind names (a docstring, imports of names
that it uses or lists in ``__all__``, literals, functions) decides no result. So it does not count where a module within
the package is imported, and ``from package import name`` depends on the module that the name comes from, not on the
others that the package passes on. Every other ``__init__`` counts, with all that it imports.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import site
import sys
import sysconfig
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from importlib.machinery import SOURCE_SUFFIXES, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

from optkit.core.kept_code import kept_code
from optkit.core.syntax import ALL, AROUND, Asked, Code

log = logging.getLogger(__name__)
OWN = __name__.partition(".")[0]


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
    """SHA-256, hex, of what a file of code means, see `optkit.core.syntax.tree_digest`; of its bytes if not Python."""
    return _read(file, "", is_package=False).digest


def imported_sources(*modules: str, without: Collection[str] = ()) -> Sources:
    """The source files that modules run, and the versions of the installed packages that these import.

    The standard library is left out. An installed package counts by its version and is not followed; one that is
    installed as editable is source, and so is optkit itself. If one of the files reads docstrings or source
    (``__doc__``, ``inspect.getsource``), all of them count by their bytes, comments and docstrings included.

    Args:
        modules: full names.
        without: modules that are neither counted nor followed.
    """
    found: dict[str, Code] = {}
    packages: dict[str, str | None] = {}
    settled = set[str]()  # top-level names of which nothing is followed
    seen, todo = set[Asked](), [(module, ALL) for module in modules]
    while todo:
        asked = todo.pop()
        name, what = asked
        top = name.partition(".")[0]
        if asked in seen or top in settled or name in without:
            continue
        seen.add(asked)
        if parent := name.rpartition(".")[0]:
            todo.append((parent, AROUND))
        spec = find_module(name)
        if spec is None:
            if name == top:
                packages[name] = None
        elif (file := file_of(spec)) is None:  # a namespace package, or built into Python
            todo += _within(spec, what)
        elif _is_standard(file):
            settled.add(top)
        elif (version := installed_version(spec)) is not None:
            packages[top] = version
            if name == top:  # else it may be a namespace that source is in, too
                settled.add(top)
        else:
            code = _code(spec, file, sys.modules.get(name))
            passed_on = None if code.face is None else code.face.get(what)
            if passed_on not in (None, asked):  # ``from . import module`` asks for the module, which is found below
                todo.append(passed_on)
                continue
            todo += (within := _within(spec, what))
            if code.face is None or not (within or what == AROUND):
                found[spec.name] = code
                todo += code.imports
    docs = any(code.reads_docs for code in found.values())
    return Sources({name: code.text if docs else code.digest for name, code in found.items()}, packages)


def _within(spec: ModuleSpec, name: str) -> list[Asked]:
    """The module of this name in a package, if there is one."""
    if spec.submodule_search_locations is None or name in (ALL, AROUND):
        return []
    inner = f"{spec.name}.{name}"
    return [] if find_module(inner) is None else [(inner, ALL)]


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
    """The version of the installed distribution that a module's file belongs to.

    None for source, which is what is installed as editable, too, and optkit itself: its version does not tell what an
    edit changed.
    """
    if (file := file_of(spec)) is None or spec.name.partition(".")[0] == OWN:
        return None
    installed = _installed(spec.name.partition(".")[0])
    return next((version for root, version in installed if file.resolve().is_relative_to(root)), None)


class _Load:
    """One loading of a module; a reload gives it another spec."""

    def __init__(self, module: ModuleType):
        self.of = getattr(module, "__spec__", None) or module

    def __hash__(self) -> int:
        return id(self.of)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Load) and self.of is other.of


def _code(spec: ModuleSpec, file: Path, loaded: ModuleType | None) -> Code:
    """A module's source: of a loaded one what was seen first, as an edit does not change what this process runs."""
    is_package = spec.submodule_search_locations is not None
    package = spec.name if is_package else spec.name.rpartition(".")[0]
    return _read(file, package, is_package) if loaded is None else _read_once(file, package, is_package, _Load(loaded))


@cache
def _read_once(file: Path, package: str, is_package: bool, load: _Load) -> Code:
    return _read(file, package, is_package)


def _read(file: Path, package: str, is_package: bool) -> Code:
    content = file.read_bytes()
    of_bytes = hashlib.sha256(content).hexdigest()
    if file.suffix not in SOURCE_SUFFIXES:
        return Code(of_bytes, of_bytes)
    try:
        return kept_code(content, package, is_package)
    except (SyntaxError, ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        log.warning("%s, line %s, is not valid Python (%s): what it imports is not followed", file, line, error)
        return Code(of_bytes, of_bytes)


def _spec_of_loaded(name: str) -> ModuleSpec | None:
    module = sys.modules[name]
    spec = getattr(module, "__spec__", None)
    if spec is None and (file := getattr(module, "__file__", None)):  # a script
        return spec_from_file_location(name, file)
    return spec


@cache
def _distributions() -> dict[str, list[metadata.Distribution]]:
    """The installed distributions by the import names that they give.

    `metadata.packages_distributions` tells the same, but takes ten times as long.
    """
    found: dict[str, list[metadata.Distribution]] = {}
    for distribution in metadata.distributions():
        for name in _import_names(distribution):
            found.setdefault(name, []).append(distribution)
    return found


def _import_names(distribution: metadata.Distribution) -> set[str]:
    if declared := distribution.read_text("top_level.txt"):
        return set(declared.split())
    tops = {line.split(",")[0].split("/")[0] for line in (distribution.read_text("RECORD") or "").splitlines()}
    return {inspect.getmodulename(top) or top for top in tops}


@cache
def _installed(package: str) -> list[tuple[Path, str]]:
    """The folder and version of each installation of a package that is not editable, by its import name."""
    found = []
    for distribution in _distributions().get(package, ()):
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


@cache
def _is_standard(file: Path) -> bool:
    return _lies_in(file.resolve(), _standard_folders()) and not _lies_in(file.resolve(), _site_folders())


def _lies_in(path: Path, folders: Iterable[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)
