"""Where optkit keeps what it need not make twice (decoded images, tokenized texts, machine peaks)."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from optkit.core.errors import UserError


def cache_dir() -> Path:
    """``$OPTKIT_CACHE``, or ``optkit`` in the user's cache folder."""
    if own := os.environ.get("OPTKIT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "optkit"


def kept(kind: str, key: str, make: Callable[[Path], None]) -> Path:
    """The folder kept under ``kind`` and ``key``; what is not there yet is made by ``make(folder)``."""
    folder = cache_dir() / kind / key
    if not folder.is_dir():
        with new_folder(folder, key="OPTKIT_CACHE") as new:
            make(new)
    return folder


@contextmanager
def new_folder(final: Path, key: str) -> Iterator[Path]:
    """A temporary folder that becomes ``final`` when the block ends well, and is removed when it does not.

    A reader sees the whole folder or none; of two writers the first wins.

    Raises:
        UserError: the place cannot be written.
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    except OSError as error:
        raise UserError(f"cannot write to {final.parent}: {error.strerror}", key=key) from error
    try:
        yield temporary
        try:
            temporary.rename(final)
        except OSError:
            if not final.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
