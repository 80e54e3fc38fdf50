"""A lease: an object that says who makes an entry, renewed by its owner; for file systems that have no locks.

It spares hosts double work, as well as an object store allows. Results do not depend on it: of two entries that are
made at the same time the first complete one wins.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psutil

from optkit.core.errors import first_line

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

log = logging.getLogger(__name__)
BEAT_S = 20.0  # how often an owner renews its lease
STALE_S = 120.0  # a lease that was not renewed for so long, as the waiting process sees it, is taken over
LONG_AGO_S = 1800.0  # and at once if its own time is so old, whatever the clocks of two hosts differ by
SETTLE_S = 1.0  # until a written lease is read back: the last of several writers has it
POLL_S = 1.0


@dataclass(frozen=True)
class Lease:
    """What the object says.

    Attributes:
        token: of the owner; another one for every time that it is taken.
        host: of the owner.
        pid: of the owner, in the process ids of `place`.
        place: the running system and its table of process ids: only within one place can a process be looked for.
        started: when the owner's process began.
        doing: what the owner does.
        beat: how many times it was renewed.
        time: when it was renewed last, by the owner's clock, seconds since 1970.
    """

    token: str
    host: str
    pid: int
    place: str
    started: float
    doing: str
    beat: int = 0
    time: float = 0.0

    @classmethod
    def mine(cls, doing: str) -> Lease:
        """A new one of this process."""
        process = psutil.Process()
        return cls(uuid4().hex, socket.gethostname(), process.pid, _place(), process.create_time(), doing)

    def owner_is_gone(self) -> bool:
        """Whether its owner was a process of this very system, and has ended."""
        if self.place != _place():
            return False
        try:
            return psutil.Process(self.pid).create_time() != self.started
        except psutil.NoSuchProcess:
            return True

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, which is {self.doing}"


@contextmanager
def leased(fs: AbstractFileSystem, path: str, doing: str) -> Iterator[None]:
    """Holds the lease at a path for the time of the block, and renews it in a thread; waits while another has it.

    Args:
        fs: a file system without a cache of listings.
        path: of the lease in it.
        doing: what the owner does, for those who wait: "making train of quickstart".
    """
    mine = Lease.mine(doing)
    try:
        _acquire(fs, path, mine)
    except Exception as error:  # noqa: BLE001 - each file system raises its own
        log.warning("no lease at %s: %s; another host may do the same work", path, first_line(error))
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_renew, args=(fs, path, mine, ended), name="optkit-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(BEAT_S)
        _release(fs, path, mine)


def read_lease(fs: AbstractFileSystem, path: str) -> Lease | None:
    """The lease at a path; None if there is none, or none that can be read."""
    try:
        data: dict[str, Any] = json.loads(fs.cat_file(path))
        return Lease(**data)
    except (FileNotFoundError, ValueError, TypeError):
        return None


def is_held(fs: AbstractFileSystem, path: str) -> bool:
    """Whether a lease was renewed lately, by its own clock, by a process that may be alive."""
    lease = read_lease(fs, path)
    return lease is not None and not lease.owner_is_gone() and time.time() - lease.time < LONG_AGO_S


def _acquire(fs: AbstractFileSystem, path: str, mine: Lease) -> None:
    fs.makedirs(path.rpartition("/")[0], exist_ok=True)
    seen: object = mine  # what nobody else writes
    since, named = 0.0, False
    while not _create(fs, path, mine):
        found = read_lease(fs, path)
        if (now := found and (found.token, found.beat)) != seen:
            seen, since = now, time.monotonic()
        if found is not None and not named:
            log.info("waiting for %s", found)
            named = True
        if why := _why_free(found, time.monotonic() - since):
            log.warning("taking over from %s: it %s", found or f"the unreadable {path}", why)
            fs.pipe_file(path, _text(mine))
            if _stands(fs, path, mine):
                return
        time.sleep(POLL_S)


def _why_free(lease: Lease | None, silent_s: float) -> str | None:
    """Why a lease may be taken over that has not changed for so long; None if it may not."""
    if lease is not None and lease.owner_is_gone():
        return "has ended"
    if lease is not None and (age := time.time() - lease.time) > LONG_AGO_S:
        return f"has said nothing for {age / 60:.0f} minutes"
    return f"has said nothing for {silent_s:.0f} s" if silent_s > STALE_S else None


def _create(fs: AbstractFileSystem, path: str, mine: Lease) -> bool:
    """Writes the lease if there is none. Where a file system knows no exclusive writing, the last of several has it."""
    try:
        with fs.open(path, "xb") as file:
            file.write(_text(mine))
    except FileExistsError:
        return False
    except (NotImplementedError, ValueError):  # knows no "x"
        if fs.exists(path):
            return False
        fs.pipe_file(path, _text(mine))
        return _stands(fs, path, mine)
    return True


def _stands(fs: AbstractFileSystem, path: str, mine: Lease) -> bool:
    time.sleep(SETTLE_S)
    found = read_lease(fs, path)
    return found is not None and found.token == mine.token


def _text(lease: Lease) -> bytes:
    return json.dumps(vars(replace(lease, time=time.time()))).encode()


def _renew(fs: AbstractFileSystem, path: str, mine: Lease, ended: threading.Event) -> None:
    beat = 0
    while not ended.wait(BEAT_S):
        beat += 1
        try:
            found = read_lease(fs, path)
            if found is not None and found.token != mine.token:
                log.warning("%s has taken over: this process could not renew its lease in time", found)
                return
            fs.pipe_file(path, _text(replace(mine, beat=beat)))
        except Exception as error:  # noqa: BLE001 - each file system raises its own
            log.warning("the lease at %s cannot be renewed: %s", path, first_line(error))


def _release(fs: AbstractFileSystem, path: str, mine: Lease) -> None:
    try:
        found = read_lease(fs, path)
        if found is not None and found.token == mine.token:
            fs.rm_file(path)
    except Exception as error:  # noqa: BLE001 - each file system raises its own
        log.warning("the lease at %s cannot be removed: %s; it ends by itself", path, first_line(error))


def _place() -> str:
    """The running system and the namespace of its process ids."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    try:
        return f"{boot.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {uuid4().hex}"  # unknown: none but this process is of it
