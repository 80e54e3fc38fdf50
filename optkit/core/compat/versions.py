"""Private names of other libraries: how optkit gets them, and which versions of these libraries it supports."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING, Any

from optkit.core.errors import UserError
from optkit.core.version import version

if TYPE_CHECKING:
    from packaging.requirements import Requirement


DISTRIBUTIONS = {"hydra": "hydra-core"}  # of packages that are imported under another name
DEVELOPMENT = ("dev", "docs", "benchmark")  # extras that no user's installation is measured by


def private(path: str) -> Any:
    """The module, or the name in a module, that a dotted path of another library stands for; imported now.

    Raises:
        UserError: the installed version has no such name. The message holds the version and those that optkit supports.
    """
    module, _, name = path.rpartition(".")
    try:
        holder = importlib.import_module(module)
        return getattr(holder, name) if hasattr(holder, name) else importlib.import_module(path)
    except ImportError as error:
        raise gone(path) from error


def attribute(thing: object, name: str, package: str = "torch") -> Any:
    """A private attribute of an object of another library.

    Raises:
        UserError: it has no such attribute, as in `private`.
    """
    try:
        return getattr(thing, name)
    except AttributeError as error:
        raise gone(f"{type(thing).__qualname__}.{name}", package) from error


def gone(name: str, package: str | None = None) -> UserError:
    """The error for a private name that the installed version of a package lacks.

    Args:
        name: a dotted path, or a class and an attribute.
        package: whose name it is; None for the first part of the path.
    """
    package = package or name.partition(".")[0]
    package = DISTRIBUTIONS.get(package, package)
    wanted = f"{package}{supported(package)}"
    if (found := version_of(package)) is None:
        return UserError(f"{package} is not installed", value=name, fix=f'pip install "{wanted}"')
    message = f"{package} {found} has no {name}; optkit supports {wanted}"
    return UserError(message, value=name, fix=f'pip install "{wanted}"')


def version_of(package: str) -> str | None:
    """The version of an installed package, which is not imported; None where there is none of that name.

    Of optkit itself it is the version of the code that runs (`optkit.core.version`).
    """
    if package == "optkit":
        return version()
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def supported(package: str) -> str:
    """The versions of a package that optkit supports, such as ``>=2.13,<2.15``; nothing where any will do."""
    from packaging.utils import canonicalize_name

    wanted = canonicalize_name(package)
    found = (need.specifier for need in _requirements() if canonicalize_name(need.name) == wanted)
    return ",".join(sorted(map(str, next(found, ())), reverse=True))


def unsupported() -> list[str]:
    """The installed packages whose versions optkit does not support, such as ``torch 2.16.0 (>=2.13,<2.15)``."""
    found = dict.fromkeys(need.name for need in _requirements() if not _fits(need))
    return [f"{name} {version_of(name)} ({supported(name)})" for name in found]


def _fits(need: Requirement) -> bool:
    found = version_of(need.name)
    return found is None or need.specifier.contains(found, prereleases=True)


def _requirements() -> Iterator[Requirement]:
    """What optkit and its extras need, by the metadata of its installation; none where it is not installed."""
    from packaging.requirements import Requirement

    try:
        declared = metadata.metadata("optkit")
    except metadata.PackageNotFoundError:
        return
    extras = ["", *(name for name in declared.get_all("Provides-Extra", ()) if name not in DEVELOPMENT)]
    for text in declared.get_all("Requires-Dist", ()):
        need = Requirement(text)
        if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras):
            yield need
