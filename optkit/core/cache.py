"""Where optkit keeps what it need not make twice (decoded images, tokenized texts, latencies of layers)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

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

    A reader sees the whole folder or none; of two writers the first wins. Who may read it, files within included, is as
    the umask says.

    Raises:
        UserError: the place cannot be written.
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(final)
        temporary.mkdir()
    except OSError as error:
        raise UserError(f"cannot write to {final.parent}: {error.strerror}", key=key) from error
    try:
        yield temporary
        _apply_umask(temporary)
        try:
            temporary.rename(final)
        except OSError:
            if not final.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_json(path: Path) -> Any:
    """What :func:`write_json` put there; None if there is nothing, or nothing whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_json(path: Path, data: Any, key: str) -> None:
    """Write a file in one step: a reader sees the old one or the new one, and a failure leaves the old one.

    Raises:
        UserError: the place cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(path)
        try:
            with temporary.open("x", encoding="utf-8") as file:
                json.dump(data, file)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {error.strerror}", key=key) from error


def _beside(path: Path) -> Path:
    """A name that nothing has yet, in the same folder."""
    return path.with_name(f".{path.name}.{uuid4().hex}")


def _apply_umask(folder: Path) -> None:
    """Gives new files the mode that a plain ``open`` would have: safetensors makes its own for their owner alone."""
    mode = folder.stat().st_mode & 0o666
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)
