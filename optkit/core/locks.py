"""Locks between processes: one works on a file or a folder, the others wait and say for whom."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from optkit.core.cache import read_json, write_json
from optkit.core.errors import UserError

log = logging.getLogger(__name__)
POLL_S = 0.1
LOOK_AGAIN_S = 1.0
NO_FLOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)  # filelock itself falls back on ENOSYS


@contextmanager
def exclusive(path: Path, doing: str, wait: bool = True) -> Iterator[None]:
    """Holds the lock of a file for the time of the block; one process at a time has it.

    The kernel frees the lock when its owner dies, SIGKILL included. Where a file system has no ``flock``, a lock file
    that names its owner takes its place: another process on the same host takes it over from a dead owner, and one on
    another host asks the user to remove it. A thread that holds the lock may take it again.

    Args:
        path: the lock file. It stays when the lock is free: removing it could give two processes the same lock.
            ``PATH.json`` beside it says who holds the lock, while somebody does.
        doing: what the owner does, for those who wait: "timing openvino".
        wait: whether to wait for another owner. The log then says once for whom.

    Raises:
        UserError: the lock file cannot be made, or another process has the lock and ``wait`` is false.
    """
    path = path.absolute()
    lock = _acquired(path, wait)
    if lock.lock_counter > 1:
        try:
            yield
        finally:
            lock.release()
        return
    try:
        write_json(_owner_file(path), _description(doing), key="lock")
        yield
    finally:
        _owner_file(path).unlink(missing_ok=True)
        lock.release()


def is_held(path: Path) -> bool:
    """Whether a process, this one included, has the lock of a file now; nothing is made or left behind.

    Where that cannot be told (a folder that may only be read), the lock counts as held while ``PATH.json`` is there.
    """
    path = path.absolute()
    soft = path.with_name(f"{path.name}.soft")
    if not (path.exists() or soft.exists()):
        return False
    lock = SoftFileLock(soft) if soft.exists() else FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:
        return _owner_file(path).exists()
    lock.release()
    return False


def others_hold(path: Path) -> str | None:
    """Who has the lock of a file, in words, unless it is this process or its parent; None if nobody has it."""
    path = path.absolute()
    owner = read_json(_owner_file(path))
    if not isinstance(owner, dict) or not is_held(path):
        return None
    if owner.get("host") == socket.gethostname() and owner.get("pid") in (os.getpid(), os.getppid()):
        return None
    return _owner(path)


def _acquired(path: Path, wait: bool) -> BaseFileLock:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _wait_for(FileLock(path, is_singleton=True, poll_interval=POLL_S), path, wait)
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
        soft = path.with_name(f"{path.name}.soft")
        return _wait_for(SoftFileLock(soft, is_singleton=True, poll_interval=POLL_S), path, wait)
    except Timeout:
        raise UserError(f"{_owner(path) or 'another process'} has {path}", fix="wait until it is done") from None
    except OSError as error:
        raise UserError(f"cannot lock {path}: {error.strerror}", fix="choose a folder you can write to") from error


def _wait_for(lock: BaseFileLock, path: Path, wait: bool) -> BaseFileLock:
    """The lock, acquired. Names each owner that it waits for once."""
    named = None
    while True:
        try:
            lock.acquire(timeout=(LOOK_AGAIN_S if named else POLL_S) if wait else 0)
            return lock
        except Timeout:
            if not wait:
                raise
        owner = _owner(path)
        if owner not in (None, named):
            hint = f"; remove {lock.lock_file} if that process is gone" if isinstance(lock, SoftFileLock) else ""
            log.info("waiting for %s%s", owner, hint)
            named = owner


def _description(doing: str) -> dict[str, str | int]:
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "doing": doing, "since": since}


def _owner(path: Path) -> str | None:
    """Who has the lock, in words; None if its owner did not say so yet."""
    try:
        found = read_json(_owner_file(path))
        since = datetime.fromisoformat(found["since"]).astimezone()
        today = since.date() == datetime.now().astimezone().date()
        when = f"{since:%H:%M:%S}" if today else f"{since:%Y-%m-%d %H:%M:%S}"
        return f"process {found['pid']} on {found['host']}, which is {found['doing']} (since {when})"
    except (TypeError, KeyError, ValueError):
        return None


def _owner_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
