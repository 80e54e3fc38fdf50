"""Processes of optkit on one host take turns at timing, because simultaneous timings disturb each other."""

from __future__ import annotations

import os
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

from optkit.core.locks import exclusive

RUN_LOCK = Path("/run/lock")


def timing_turn(doing: str) -> AbstractContextManager[None]:
    """Waits until no other process of this user on this host is timing, and holds the turn for the block.

    The kernel ends the turn of a process that dies. Work that is not timed (training, compiling) does not take part:
    a process that trains beside one that times is noticed as other load.

    Args:
        doing: what is timed, for those who wait: "timing openvino".

    Raises:
        UserError: the lock file cannot be made.
    """
    return exclusive(turns_file(), doing)


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
