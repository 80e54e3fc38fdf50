"""Where optkit keeps what it need not make twice (decoded images, tokenized texts, latencies of layers)."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any
from uuid import uuid4

from optkit.core.errors import cannot_write, raise_if_full

log = logging.getLogger(__name__)


def cache_dir() -> Path:
    """``$OPTKIT_CACHE``, or ``optkit`` in the user's cache folder."""
    if own := os.environ.get("OPTKIT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "optkit"


def is_kept(kind: str, key: str) -> bool:
    """Whether the folder is there that `kept` gives."""
    return (cache_dir() / kind / key).is_dir()


def kept(kind: str, key: str, make: Callable[[Path], None]) -> Path:
    """The folder kept under ``kind`` and ``key``; what is not there yet is made by ``make(folder)``, by one process."""
    from optkit.core.locks import exclusive  # describes a lock's owner with this file's write_json

    folder = cache_dir() / kind / key
    if not folder.is_dir():
        with exclusive(cache_dir() / ".locks" / f"{kind}-{key}", f"making {kind}"):
            if not folder.is_dir():
                clear_unfinished(folder)
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
        StageError: the disk is full.
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(final)
        temporary.mkdir()
    except OSError as error:
        raise cannot_write(final.parent, error, key) from error
    try:
        yield temporary
        _apply_umask(temporary)
        try:
            temporary.rename(final)
        except OSError:
            if not final.is_dir():
                raise
    except Exception as error:
        raise_if_full(error, final.parent)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_json(path: Path) -> Any:
    """What :func:`write_json` put there; None if there is nothing, or nothing that can be read, which is logged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read, so it is made anew: %s", path, error)
        return None


def write_json(path: Path, data: Any, key: str) -> None:
    """Writes JSON in one step: see :func:`new_file`."""
    write_text(path, json.dumps(data), key)


def write_text(path: Path, text: str, key: str = "out") -> None:
    """Writes a text in one step: see :func:`new_file`."""
    with new_file(path, key) as file:
        file.write_text(text, encoding="utf-8")


@contextmanager
def new_file(final: Path, key: str = "out") -> Iterator[Path]:
    """A name of the same ending that becomes ``final`` when the block, which writes it, ends well.

    A reader sees the old file or the new one, and a failure leaves the old one. What is no plain file, such as
    ``/dev/stdout``, is written as it is.

    Raises:
        UserError: the place cannot be written.
        StageError: the disk is full.
    """
    if final.exists() and not final.is_file():
        yield final
        return
    final = final.resolve()
    temporary = _beside(final)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(final)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(final.parent, error, key) from error
    except Exception as error:
        raise_if_full(error, final.parent)
        raise


def clear_unfinished(final: Path) -> None:
    """Removes what killed writers of a folder left beside it; only for who has its lock."""
    for left in final.parent.glob(f".{escape(final.stem)}.{'?' * 32}{escape(final.suffix)}"):
        shutil.rmtree(left, ignore_errors=True)


def _beside(path: Path) -> Path:
    """A name of the same ending that nothing has yet, in the same folder."""
    return path.with_name(f".{path.stem}.{uuid4().hex}{path.suffix}")


def _apply_umask(folder: Path) -> None:
    """Gives new files the mode that a plain ``open`` would have: safetensors makes its own for their owner alone."""
    mode = folder.stat().st_mode & 0o666
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)
