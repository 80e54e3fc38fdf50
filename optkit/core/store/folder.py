"""A store in a folder, which many processes and hosts may use: an entry appears whole or not at all."""

from __future__ import annotations

import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from optkit.core.cache import clear_unfinished, new_folder
from optkit.core.checksums import Entry, damage
from optkit.core.errors import DeadEndError, UserError, cannot_write
from optkit.core.locks import exclusive
from optkit.core.store.uses import Uses

if TYPE_CHECKING:
    from torch import Tensor, nn

    from optkit.core.artifact import Artifact
    from optkit.core.variant import Variant

log = logging.getLogger(__name__)
LOCKS, PARTIAL, DAMAGED = ".locks", ".partial", ".damaged"


class StageStore(Protocol):
    """Variants by id."""

    def has(self, variant_id: str) -> bool:
        """Whether there is such an entry. Nothing is read or checked."""

    def find(self, variant_id: str) -> Artifact | None:
        """The variant with this id, its files checked; None if there is none, or a damaged one, which the log names."""

    def making(self, variant_id: str, doing: str) -> AbstractContextManager[None]:
        """Holds the right to make a variant: one process makes it, and others wait and then find it."""

    def put(
        self,
        variant: Variant,
        module: nn.Module,
        example: tuple[Tensor, ...],
        check: Callable[[Artifact], None] = lambda artifact: None,
    ) -> Artifact:
        """Saves a variant and drops what its stage kept for resuming.

        Args:
            variant: its description.
            module: its module.
            example: inputs of any batch size.
            check: sees the saved variant before anybody else does; if it raises, nothing is kept.
        """

    def workdir(self, variant_id: str) -> Path:
        """A folder for the stage that makes this variant; what it holds survives a kill."""


class FolderStore:
    """Variants in folders named by their id (see `StageStore`). Of two writers the first wins.

    Args:
        root: the folder of the store.
        made_by: the recipe that puts entries, which ``optkit store ls`` shows.
    """

    def __init__(self, root: Path, made_by: str | None = None):
        self.root, self.made_by = root, made_by
        self._uses = Uses(root)

    def has(self, variant_id: str) -> bool:
        return (self.root / variant_id).is_dir()

    def find(self, variant_id: str) -> Artifact | None:
        from optkit.core.artifact import open_artifact

        folder = self.root / variant_id
        if not folder.is_dir():
            return None
        self._uses.add(variant_id)
        while folder.is_dir():
            if (wrong := broken(folder)) is None:
                _touch(folder)
                return open_artifact(folder)
            self._set_aside(variant_id, wrong)
        return None

    @contextmanager
    def making(self, variant_id: str, doing: str) -> Iterator[None]:
        """As `StageStore.making`.

        What a killed owner left half-written goes first; what its stage kept for resuming stays. It goes too when the
        stage says that going on from there would fail again.
        """
        with self.locked(variant_id, doing):
            try:
                yield
            except DeadEndError:
                shutil.rmtree(self._partial(variant_id), ignore_errors=True)
                raise
            finally:
                _remove_if_empty(self._partial(variant_id))

    @contextmanager
    def locked(self, variant_id: str, doing: str) -> Iterator[None]:
        """Holds the lock of an entry; what killed writers left of it goes."""
        with exclusive(self.root / LOCKS / variant_id, doing):
            clear_unfinished(self.root / variant_id)
            yield

    def put(
        self,
        variant: Variant,
        module: nn.Module,
        example: tuple[Tensor, ...],
        check: Callable[[Artifact], None] = lambda artifact: None,
    ) -> Artifact:
        from optkit.core.artifact import FILES, open_artifact, save_artifact

        with new_folder(self.root / variant.id, key="store") as folder:
            check(save_artifact(folder, variant, module, example))
            Entry.of(folder, FILES, self._about(variant)).save(folder)
        shutil.rmtree(self._partial(variant.id), ignore_errors=True)
        self._uses.add(variant.id)
        return open_artifact(self.root / variant.id)

    def receive(self, variant_id: str, fill: Callable[[Path], None], replace: bool = False) -> None:
        """Takes an entry that ``fill(folder)`` writes, for who has its lock; ``replace`` drops one that is there."""
        with new_folder(self.root / variant_id, key="store") as folder:
            fill(folder)
            if replace:
                shutil.rmtree(self.root / variant_id, ignore_errors=True)

    def workdir(self, variant_id: str) -> Path:
        folder = self._partial(variant_id)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.root, error, "store") from error
        return folder

    def _about(self, variant: Variant) -> dict[str, Any]:
        step = variant.steps[-1] if variant.steps else None
        return {
            "stage": step.stage if step else "model",
            "technique": step.technique if step else "model",
            "parent": variant.parent,
            "recipe": self.made_by,
            "host": socket.gethostname(),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def _set_aside(self, variant_id: str, wrong: str) -> None:
        """Renames a damaged entry, which is not served any more; another process may have done so."""
        folder, aside = self.root / variant_id, self.root / f"{variant_id}{DAMAGED}"
        with exclusive(self.root / LOCKS / variant_id, "setting a damaged entry aside"):
            if not folder.is_dir() or broken(folder) is None:
                return
            shutil.rmtree(aside, ignore_errors=True)
            try:
                folder.rename(aside)
            except OSError as error:
                message = f"{folder} is damaged: {wrong}; it cannot be set aside: {error.strerror}"
                raise UserError(message, key="store", fix="remove it") from error
            log.warning("%s is damaged: %s; it is now %s, and made anew", folder, wrong, aside.name)

    def _partial(self, variant_id: str) -> Path:
        return self.root / f"{variant_id}{PARTIAL}"


class ReadOnlyStore:
    """A folder that this process may read only, and a store that takes what is new (see `StageStore`).

    Args:
        root: the folder.
        front: takes what is new; it is asked first.
    """

    def __init__(self, root: Path, front: FolderStore):
        self.root, self.front = root, front
        self.making, self.put, self.workdir = front.making, front.put, front.workdir

    def has(self, variant_id: str) -> bool:
        return self.front.has(variant_id) or (self.root / variant_id).is_dir()

    def find(self, variant_id: str) -> Artifact | None:
        from optkit.core.artifact import open_artifact

        folder = self.root / variant_id
        if (found := self.front.find(variant_id)) is not None or not folder.is_dir():
            return found
        if wrong := broken(folder):
            log.warning("%s is damaged: %s; it is not used, and made anew in %s", folder, wrong, self.front.root)
            return None
        return open_artifact(folder)


def broken(folder: Path) -> str | None:
    """What is wrong with an entry, in words; None if nothing is.

    Entries of earlier versions have no checksums: only the lengths that their safetensors files say are checked.
    """
    from safetensors import SafetensorError, safe_open

    from optkit.core.checksums import ENTRY

    if (folder / ENTRY).exists():
        return damage(folder)
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, "numpy"):
                pass
        except (SafetensorError, OSError) as error:
            return f"{path.name} cannot be read: {error}"
    return None


def _touch(folder: Path) -> None:
    """Says that an entry was used now, which gc goes by."""
    try:
        os.utime(folder)
    except OSError:  # of another owner: its age counts from when it was made
        return


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:  # holds something, or is not there
        return
