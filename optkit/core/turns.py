"""Processes of optkit on one host take turns at timing, because simultaneous timings disturb each other."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from filelock import ReadWriteLock, Timeout

from optkit.core.locks import exclusive, others_hold

log = logging.getLogger(__name__)
RUN_LOCK = Path("/run/lock")
LOOK_S = 0.2  # from look to look at who is timing; a look takes some microseconds
PAUSE_S = 0.1
_timing = [False]  # whether this process has the turn
_working = [False]  # whether this process is at heavy work: then it waits for nobody
_looked = [0.0]  # when this process looked last


@contextmanager
def timing_turn(doing: str) -> Iterator[None]:
    """Waits until no other process of this user on this host is timing, and holds the turn for the block.

    The kernel ends the turn of a process that dies. Trainings and evaluations of other processes give way meanwhile
    (`give_way`); what cannot pause is waited for (`heavy_work`). Short work of theirs goes on, and is noticed as other
    load.

    Args:
        doing: what is timed, for those who wait: "timing openvino".

    Raises:
        UserError: the lock file cannot be made.
    """
    with exclusive(turns_file(), doing):
        if _timing[0]:
            yield
            return
        lock = _heavy()
        _acquired(lock.acquire_write, "the turn to time waits until other runs have compiled")
        _timing[0] = True
        try:
            yield
        finally:
            _timing[0] = False
            lock.release()


@contextmanager
def heavy_work() -> Iterator[None]:
    """Around work of seconds or minutes that cannot pause, such as compiling: nobody else is timing meanwhile.

    It waits while another process is timing, and others that want to time wait for it. Nothing is timed inside. A block
    within another one belongs to that: if it waited for a process that waits for the outer block, both would for ever.
    """
    if _timing[0] or _working[0]:
        yield
        return
    _let_others_time()  # one that waits for its turn would starve if ever new work got the lock
    lock = _heavy()
    _acquired(lock.acquire_read, "compiling waits until another run has timed")
    _working[0] = True
    try:
        yield
    finally:
        _working[0] = False
        lock.release()


def _heavy() -> ReadWriteLock:
    return _kept_lock(turns_file().with_name("heavy.db"))


@cache  # the library keeps a lock only while it is held, and frees it within some later call of a compiled model
def _kept_lock(path: Path) -> ReadWriteLock:
    path.parent.mkdir(parents=True, exist_ok=True)
    return ReadWriteLock(path)


def _acquired(acquire: Callable[..., object], message: str) -> None:
    """Acquires a lock in short tries: a signal is answered between them."""
    said = False
    while True:
        try:
            acquire(timeout=PAUSE_S)
            return
        except Timeout:
            if not said:
                log.info(message)
            said = True


def give_way(stop: Callable[[], Any] = bool) -> float:
    """Waits while another process of this user on this host is timing; long work calls it between its steps.

    Args:
        stop: ends the waiting when it gives something true.

    Returns:
        How long it waited, s.
    """
    begun = time.monotonic()
    if _working[0] or begun < _looked[0] + LOOK_S:
        return 0.0
    waited = _let_others_time(stop)
    _looked[0] = time.monotonic()
    return _looked[0] - begun if waited else 0.0


def _let_others_time(stop: Callable[[], Any] = bool) -> bool:
    """Waits while another process is timing, or until ``stop``; whether it had to."""
    path, waited = turns_file(), False
    while (owner := others_hold(path)) and not stop():
        if not waited:
            log.info("paused for %s", owner)
        waited = True
        time.sleep(PAUSE_S)
    return waited


def turns_file() -> Path:
    """The lock file: in ``$OPTKIT_LOCKS``, or in a folder of this user in ``/run/lock`` or else the temporary folder.

    ``/run/lock`` comes first, because schedulers give each job another ``TMPDIR``. The folder is the user's own: a file
    that every user may write in a folder that every user may write could be replaced by any of them. Processes of other
    users and of other containers are noticed as other load; containers that share a folder can name it in
    ``$OPTKIT_LOCKS``.
    """
    if own := os.environ.get("OPTKIT_LOCKS"):
        return Path(own) / "timing"
    shared = RUN_LOCK if os.access(RUN_LOCK, os.W_OK) else Path(tempfile.gettempdir())
    user = f"-{os.getuid()}" if hasattr(os, "getuid") else ""
    return shared / f"optkit{user}" / "timing"
