"""Which entries of a store running processes read, so that ``optkit store gc`` leaves them."""

from __future__ import annotations

import fcntl
import os
import socket
import time
import weakref
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from optkit.core.locks import NO_FLOCK

FOLDER = Path(".locks", "used")
UNLOCKED_S = 86_400.0  # where a file system has no flock, a list of entries counts so long after its last one


class Uses:
    """The entries that this process reads, in a file that is locked as long as it lives.

    Args:
        root: the folder of the store.
    """

    def __init__(self, root: Path):
        self.root = root
        self._ids: set[str] = set()
        self._file: int | None = None

    def add(self, variant_id: str) -> None:
        """Notes that an entry is read from now on. In a store that cannot be written nothing is noted."""
        if variant_id in self._ids:
            return
        try:
            if self._file is None:
                self._file = self._open()
            os.write(self._file, f"{variant_id}\n".encode())
        except OSError:  # a note for gc, which cannot remove anything from such a store either
            return
        self._ids.add(variant_id)

    def _open(self) -> int:
        folder = self.root / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        used(self.root)  # what killed processes left goes
        while True:
            path = folder / f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex}"
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
            _try_lock(file)
            if os.fstat(file).st_nlink:
                weakref.finalize(self, _close, file, path, os.getpid())
                return file
            os.close(file)  # gc took it for one that a killed process left


def used(root: Path) -> set[str]:
    """The ids that living processes read; what dead ones left goes."""
    found: set[str] = set()
    for path in (root / FOLDER).glob("*"):
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # it may be another user's
        except FileNotFoundError:
            continue
        try:
            if _is_free(file):
                with suppress(PermissionError):
                    path.unlink(missing_ok=True)
            else:
                found |= set(path.read_text().split())
        finally:
            os.close(file)
    return found


def _is_free(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in NO_FLOCK and time.time() - os.fstat(file).st_mtime > UNLOCKED_S
    return True


def _try_lock(file: int) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise


def _close(file: int, path: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child has it, too
        path.unlink(missing_ok=True)
        os.close(file)
