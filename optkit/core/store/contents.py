"""What is in a store, for ``optkit store``: entries with their size and age, removed and checked one by one."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from optkit.core.checksums import ENTRY, Entry
from optkit.core.errors import UserError
from optkit.core.locks import exclusive
from optkit.core.store.folder import DAMAGED, LOCKS, PARTIAL, broken
from optkit.core.store.uses import used

WHOLE, UNFINISHED, IS_DAMAGED = "whole", "unfinished", "damaged"
ID = "[0-9a-f]{16}"
VARIANT_FILE = "variant.json"
# folders of a store by their names; what else is there belongs to somebody else and stays
NAMES = {
    WHOLE: re.compile(f"({ID})"),
    UNFINISHED: re.compile(rf"({ID}){re.escape(PARTIAL)}|\.({ID})\.[0-9a-f]{{32}}"),
    IS_DAMAGED: re.compile(f"({ID}){re.escape(DAMAGED)}"),
}


@dataclass(frozen=True)
class Stored:
    """One entry of a store.

    Attributes:
        id: of the variant.
        place: its name in the store: the id, or that of work that did not end or of a damaged entry.
        state: ``whole``, ``unfinished`` or ``damaged``.
        size: bytes.
        used: when it was used last, or made, where that is not known; seconds since 1970.
        stage: that made it, ``model`` for a model as it was loaded; None where that is not known.
        technique: of the stage.
        recipe: that made it.
        parent: id of the variant that it was made from.
        checked: whether it has checksums; entries of earlier versions have none.
    """

    id: str
    place: str
    state: str
    size: int
    used: float
    stage: str | None = None
    technique: str | None = None
    recipe: str | None = None
    parent: str | None = None
    checked: bool = False


class Contents(Protocol):
    """The entries of one store."""

    def entries(self) -> list[Stored]:
        """All of them."""

    def remove(self, one: Stored) -> str | None:
        """Removes an entry, unless somebody makes or reads it: then says so."""

    def damage(self, one: Stored) -> str | None:
        """Reads a whole entry and says what is wrong with it; None if nothing is."""


class FolderContents:
    """The entries of a `FolderStore` (see `Contents`).

    Raises:
        UserError: there is no store in the folder.
    """

    def __init__(self, root: Path):
        self.root = root
        if not (root / LOCKS).is_dir() and not any(self._folders()):
            raise UserError(f"no store at {root}", key="STORE", fix="give the folder or URL that store= names")

    def entries(self) -> list[Stored]:
        return [self._stored(*found) for found in self._folders()]

    def remove(self, one: Stored) -> str | None:
        if one.state == IS_DAMAGED:
            shutil.rmtree(self.root / one.place)
            return None
        try:
            with exclusive(self.root / LOCKS / one.id, "removing an entry", wait=False):
                if one.id in used(self.root):
                    return "a running process reads it"
                gone = self.root / f".{one.id}.{0:032x}"  # a reader sees all of it or nothing
                shutil.rmtree(gone, ignore_errors=True)
                (self.root / one.place).rename(gone)
                shutil.rmtree(gone)
        except UserError as error:
            return error.message
        except FileNotFoundError:
            return None
        return None

    def damage(self, one: Stored) -> str | None:
        return broken(self.root / one.place)

    def _folders(self) -> Iterator[tuple[Path, str, str]]:
        """Folders that are a store's, with their state and id."""
        if not self.root.is_dir():
            return
        for folder in sorted(self.root.iterdir()):
            for state, pattern in NAMES.items():
                found = pattern.fullmatch(folder.name)
                if found and folder.is_dir() and (state != WHOLE or (folder / VARIANT_FILE).is_file()):
                    yield folder, state, found[1] or found[2]

    def _stored(self, folder: Path, state: str, variant_id: str) -> Stored:
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        used = max(
            [folder.stat().st_mtime, *(path.stat().st_mtime for path in folder.glob("*") if state == UNFINISHED)]
        )
        about = _about(folder)
        return Stored(variant_id, folder.name, state, sum(sizes), used, **about, checked=(folder / ENTRY).is_file())


def facts(about: Any) -> dict[str, str | None]:
    """The facts that an entry's manifest has, those of `Stored`."""
    found = about if isinstance(about, dict) else {}
    return {key: found.get(key) for key in ("stage", "technique", "recipe", "parent")}


def seconds(about: Any) -> float:
    """When an entry was made, by its manifest; seconds since 1970, 0 where it does not say."""
    try:
        return datetime.fromisoformat(about["time"]).timestamp()
    except (TypeError, KeyError, ValueError):
        return 0.0


def _about(folder: Path) -> dict[str, str | None]:
    """What an entry's manifest says, or else its variant."""
    try:
        return facts(Entry.from_json((folder / ENTRY).read_bytes()).about)
    except (OSError, ValueError):
        pass
    try:
        variant = json.loads((folder / VARIANT_FILE).read_text())["variant"]
        last = variant["steps"][-1] if variant["steps"] else {"stage": "model", "technique": "model"}
        return facts({"stage": last["stage"], "technique": last["technique"], "parent": variant["parent"]})
    except (OSError, ValueError, KeyError, TypeError):
        return facts(None)
