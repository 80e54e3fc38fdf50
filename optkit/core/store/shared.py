"""A store that hosts share through any file system of fsspec, with a folder of this machine's cache in front."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from optkit.core.checksums import ENTRY, Entry
from optkit.core.errors import StageError, first_line
from optkit.core.store.folder import FolderStore
from optkit.core.store.lease import leased
from optkit.core.store.remote import Damaged, Remote

if TYPE_CHECKING:
    from torch import Tensor, nn

    from optkit.core.artifact import Artifact
    from optkit.core.variant import Variant

log = logging.getLogger(__name__)
NO_RIGHT = (errno.EROFS, errno.EACCES, errno.EPERM)


class SharedStore:
    """Variants that are made here or elsewhere, once (see `StageStore`).

    An entry is downloaded into `cache`, checked and used there. A new one is made there and then uploaded. A failed
    upload is said, the run goes on, and the next run that finds the entry in the cache tries again.

    Args:
        remote: what is shared.
        cache: of this machine.
    """

    def __init__(self, remote: Remote, cache: FolderStore):
        self.remote, self.cache = remote, cache
        self.workdir = cache.workdir
        self._shared: set[str] = set()  # of which is known that they are there

    def has(self, variant_id: str) -> bool:
        return self.cache.has(variant_id) or self.remote.entry(variant_id) is not None

    def find(self, variant_id: str) -> Artifact | None:
        if (found := self.cache.find(variant_id)) is not None:
            self._share(variant_id)
            return found
        return self._fetch(variant_id)

    @contextmanager
    def making(self, variant_id: str, doing: str) -> Iterator[None]:
        with self.cache.making(variant_id, doing):
            if self.remote.read_only:
                yield
                return
            with leased(self.remote.fs, self.remote.lease(variant_id), doing):
                yield

    def put(
        self,
        variant: Variant,
        module: nn.Module,
        example: tuple[Tensor, ...],
        check: Callable[[Artifact], None] = lambda artifact: None,
    ) -> Artifact:
        artifact = self.cache.put(variant, module, example, check)
        self._share(variant.id)
        return self.cache.find(variant.id) or artifact

    def _fetch(self, variant_id: str) -> Artifact | None:
        """Downloads an entry that is there and whole."""
        entry = self.remote.entry(variant_id)
        if entry is None:
            return None
        with self.cache.locked(variant_id, f"downloading an entry of {self.remote.url}"):
            if (found := self.cache.find(variant_id)) is None and self._download(variant_id, entry):
                found = self.cache.find(variant_id)
                self._shared.add(variant_id)
        return found

    def _download(self, variant_id: str, entry: Entry, replace: bool = False) -> bool:
        """Whether an entry is in the cache now. One whose files are damaged is tried twice, named, and set aside."""
        for last in (False, True):
            try:
                self.cache.receive(variant_id, lambda new: self.remote.download(variant_id, entry, new), replace)
                log.info("%s: downloaded %s (%.1f MB)", self.remote.url, variant_id, entry.size / 1e6)
                return True
            except Damaged as error:
                if self.remote.entry(variant_id) is None:  # gc removed it meanwhile
                    return False
                if last:
                    log.warning("%s: entry %s is damaged: %s; it is made anew", self.remote.url, variant_id, error)
                    self.remote.set_aside(variant_id)
        return False

    def _share(self, variant_id: str) -> None:
        """Uploads an entry of the cache that is not there yet. One that another host put first takes its place here."""
        if variant_id in self._shared:
            return
        folder = self.cache.root / variant_id
        ours = Entry.from_json((folder / ENTRY).read_bytes())
        try:
            theirs = self.remote.entry(variant_id)
        except StageError as error:
            log.warning("%s; what is in %s is used", error.message, self.cache.root)
            return
        if theirs is None and not self.remote.read_only:
            self._upload(variant_id, folder, ours)
            return
        if theirs is not None and theirs.files != ours.files:
            log.warning("%s: another host made %s, with other bytes; these are used", self.remote.url, variant_id)
            with self.cache.locked(variant_id, f"downloading an entry of {self.remote.url}"):
                self._download(variant_id, theirs, replace=True)
        self._shared.add(variant_id)

    def _upload(self, variant_id: str, folder: Path, entry: Entry) -> None:
        try:
            self.remote.upload(variant_id, folder, entry)
        except Exception as error:  # noqa: BLE001 - each file system raises its own
            if isinstance(error, PermissionError) or getattr(error, "errno", None) in NO_RIGHT:
                self.remote.read_only = True
                log.warning(
                    "%s cannot be written: %s; what is new stays in %s", self.remote.url, error, self.cache.root
                )
            else:
                message = "%s: entry %s is not uploaded: %s; it stays in %s, and the next run tries again"
                log.warning(message, self.remote.url, variant_id, first_line(error), self.cache.root)
            return
        log.info("%s: uploaded %s (%.1f MB)", self.remote.url, variant_id, entry.size / 1e6)
        self._shared.add(variant_id)
