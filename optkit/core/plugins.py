"""Plug-ins: what installed packages offer under an entry point group, by name, and imported only when it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib import metadata
from importlib.metadata import EntryPoint
from typing import TypeVar

from optkit.core.errors import OptkitError, UserError, did_you_mean, first_line

T = TypeVar("T")
BUNDLED_BY = "optkit"


class Plugins(Mapping[str, T]):
    """The objects of one kind by name: optkit's own, and those that other installed packages declare.

    A package declares its objects as entry points of ``group``. Names are read from the packages' metadata; an object
    is imported when it is asked for, and only then can a broken package fail.

    Args:
        group: the entry point group, such as ``optkit.engines``.
        kind: what one object is called in errors, such as ``engine``.
        bundled: ``module:name`` of optkit's own objects. They are a table and no entry points, so that a source tree
            that is not installed has them.
        unfit: says why an imported object does not keep the contract; takes its name and the object.
    """

    def __init__(
        self, group: str, kind: str, bundled: Mapping[str, str], unfit: Callable[[str, object], str | None]
    ) -> None:
        self.group, self.kind = group, kind
        self._bundled, self._unfit = bundled, unfit

    @cached_property
    def _offers(self) -> dict[str, list[EntryPoint]]:
        """What is offered under each name; more than one where packages use the same name."""
        found = {name: [EntryPoint(name, value, self.group)] for name, value in self._bundled.items()}
        for offer in metadata.entry_points(group=self.group):
            found.setdefault(offer.name, []).append(offer)
        return found

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._offers

    def __iter__(self) -> Iterator[str]:
        return iter(self._offers)

    def __len__(self) -> int:
        return len(self._offers)

    def __getitem__(self, name: str) -> T:
        """Imports an object.

        Raises:
            KeyError: no package offers the name.
            UserError: the package cannot be imported, breaks the contract, or is not the only one with this name.
        """
        offers = self._offers[name]
        if len(offers) > 1:
            message = f"several packages offer the {self.kind} '{name}': {', '.join(map(_source, offers))}"
            raise UserError(message, key=self.kind, value=name, fix="uninstall all but one")
        found = self._load(offers[0])
        if reason := self._unfit(name, found):
            raise UserError(f"the {self.kind} '{name}' of {_source(offers[0])} cannot be used: {reason}", key=self.kind)
        return found  # type: ignore[return-value]

    def check(self, name: object, key: str, package: str | None = None) -> None:
        """Raises UserError for a name that no package offers; imports nothing. The arguments are those of `find`."""
        if name in self:
            return
        if package is not None and package != BUNDLED_BY:
            message = f"no {self.kind} '{name}': it came with the package '{package}', which is not installed here"
            raise UserError(message, key=key, value=name, fix="install that package if you trust it")
        raise UserError(f"no {self.kind} '{name}'", key=key, value=name, fix=did_you_mean(str(name), self))

    def find(self, name: object, key: str, package: str | None = None) -> T:
        """An object by the name that a user or a file gave.

        Args:
            name: of the object.
            key: where the name was given, for the error.
            package: that offered the name once, if that is known.

        Raises:
            UserError: as for indexing, and for a name that no package offers.
        """
        self.check(name, key, package)
        return self[str(name)]

    def package(self, name: str) -> str | None:
        """The package that offers a name, ``optkit`` for optkit's own; None for an unknown name."""
        offers = self._offers.get(name)
        return None if offers is None else offers[0].dist.name if offers[0].dist else BUNDLED_BY

    def source(self, name: str) -> str:
        """The package that offers a name, with its version."""
        return ", ".join(map(_source, self._offers[name]))

    def module(self, name: str) -> str:
        """The module that defines an object; nothing is imported."""
        return self._offers[name][0].module

    def path(self, name: str) -> str:
        """The dotted path of an object; nothing is imported."""
        return f"{self.module(name)}.{self._offers[name][0].attr}"

    def added(self) -> list[str]:
        """The names that other packages than optkit offer."""
        return [name for name in self._offers if name not in self._bundled]

    def _load(self, offer: EntryPoint) -> object:
        try:
            return offer.load()
        except OptkitError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            message = f"the {self.kind} '{offer.name}' of {_source(offer)} cannot be imported: {reason}"
            raise UserError(message, key=self.kind, value=offer.name, fix="repair or uninstall the package") from error


def _source(offer: EntryPoint) -> str:
    return f"{offer.dist.name} {offer.dist.version}" if offer.dist else BUNDLED_BY
