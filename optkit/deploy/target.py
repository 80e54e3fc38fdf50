"""The folder that an export is written to: whole or not at all, and never over what is somebody else's."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from optkit.core.cache import new_folder
from optkit.core.errors import UserError, cannot_write

ABOUT = "export.json"
FORMAT = 1


def check_target(to: Path, same_as: tuple[str, str] | None, force: bool) -> None:
    """Raises UserError unless a folder is new, empty, or holds an export of the same variant for the same engine.

    Args:
        to: the folder.
        same_as: the variant and the engine; None where they are not known yet.
        force: whether the folder may hold anything.
    """
    if to.exists() and not to.is_dir():
        raise UserError(f"{to} is a file", key="to", value=str(to), fix="give a folder")
    if force or not to.is_dir() or not any(to.iterdir()):
        return
    if not (to / ABOUT).is_file():
        fix = "give a new folder, or --force: files of the same names are replaced, others stay"
        raise UserError(f"{to} is not empty, and no export", key="to", value=str(to), fix=fix)
    about = read_about(to)
    if same_as is not None and (about["variant"], about["engine"]) != same_as:
        message = f"{to} holds another export: {about['name']} for {about['engine']}"
        raise UserError(message, key="to", value=str(to), fix="give a new folder, or --force to replace it")


def read_about(folder: Path) -> dict[str, Any]:
    """What an export says of itself: ``variant``, ``engine``, ``name``, and ``files`` with the SHA-256 of each.

    Raises:
        UserError: the folder is no export.
    """
    path = folder / ABOUT
    if not path.is_file():
        fix = "give a folder that optkit export wrote" if folder.is_dir() else "check the path"
        raise UserError(f"{folder} is no export", key="dir", value=str(folder), fix=fix)
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        whole = about["format"] == FORMAT and all(isinstance(about[k], str) for k in ("variant", "engine", "name"))
        inside = all(
            isinstance(n, str) and not Path(n).is_absolute() and ".." not in Path(n).parts for n in about["files"]
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"not an export: {error}", key=str(path)) from error
    if not (whole and inside and isinstance(about["files"], dict)):
        raise UserError("not an export that this optkit reads", key=str(path), fix="export again")
    return about


@contextmanager
def new_export(to: Path, about: dict[str, Any]) -> Iterator[Path]:
    """A folder to write an export into; its files are at ``to`` once the block has ended well, else nothing is.

    A folder that is there already keeps what is not of an export.
    """
    to = to.resolve()
    if not to.is_dir():
        with new_folder(to, key="to") as folder:
            yield folder
            _describe(folder, about)
        return
    # within it, since the folder above may be one that cannot be written
    staged = to / f".{uuid4().hex}"
    old = read_about(to)["files"] if (to / ABOUT).is_file() else {}
    try:
        with new_folder(staged, key="to") as folder:
            yield folder
            _describe(folder, about)
        for name in list_files(staged):
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged / name, to / name)
    except OSError as error:
        raise cannot_write(to, error, "to") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    for name in set(old) - set(about["files"]):
        (to / name).unlink(missing_ok=True)


def list_files(folder: Path) -> list[str]:
    """The names of all files below a folder, hidden ones left out; `ABOUT` comes last."""
    paths = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    names = [path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)]
    return sorted(names, key=lambda name: name == ABOUT)


def sha256(path: Path) -> str:
    """Hash of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe(folder: Path, about: dict[str, Any]) -> None:
    about["files"] = {name: sha256(folder / name) for name in list_files(folder)}
    text = json.dumps({"format": FORMAT} | about, indent=1, ensure_ascii=False)
    (folder / ABOUT).write_text(text + "\n", encoding="utf-8")
