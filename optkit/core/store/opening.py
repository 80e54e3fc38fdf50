"""What ``store=`` may be: a folder, or a URL of fsspec. Everything that is wrong with it is said before any work."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from optkit.core.cache import cache_dir
from optkit.core.errors import UserError, did_you_mean, first_line
from optkit.core.secrets import without_credentials
from optkit.core.store.contents import Contents, FolderContents
from optkit.core.store.folder import FolderStore, ReadOnlyStore, StageStore
from optkit.core.store.remote import ENTRIES, Remote
from optkit.core.store.remote_contents import RemoteContents
from optkit.core.store.shared import NO_RIGHT, SharedStore

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

log = logging.getLogger(__name__)
KEY = "store"


def open_store(place: str, made_by: str | None = None) -> StageStore:
    """The store at a place. Nothing is made there before an entry is.

    Args:
        place: a folder, or a URL such as ``s3://bucket/optkit``. A folder that holds entries of a URL (``file://...``)
            is opened as that.
        made_by: the recipe that puts entries, which ``optkit store ls`` shows.

    Raises:
        UserError: no such file system, a package that is not installed, a file in place of a folder, no rights, or a
            server that cannot be reached.
    """
    if not is_url(place):
        folder = Path(place)
        writable = check_folder(folder)
        if not (folder / ENTRIES).is_dir():
            if writable:
                return FolderStore(folder, made_by)
            front = FolderStore(cache_of(str(folder.resolve())), made_by)
            log.warning("%s cannot be written: what is new goes to %s", place, front.root)
            return ReadOnlyStore(folder, front)
        place = folder.resolve().as_uri()
    remote = open_remote(place)
    cache = FolderStore(cache_of(place), made_by)
    if remote.read_only:
        log.warning("%s cannot be written: what is new goes to %s", remote.url, cache.root)
    return SharedStore(remote, cache)


def check_store(place: str) -> None:
    """Raises UserError as `open_store` does, and says nothing else; a server is asked once a process."""
    if not isinstance(place, str) or not place.strip():
        raise UserError(f"{place!r} is no folder and no URL", key=KEY, value=place, fix="such as runs/store")
    if is_url(place):
        open_remote(place)
    else:
        check_folder(Path(place))


def is_url(place: str) -> bool:
    """Whether it is a URL and no folder; raises UserError for one that is written wrong."""
    if found := re.match(r"([A-Za-z][\w+.-]*):/*", place):
        from fsspec import available_protocols

        if "://" in place:
            return True
        if found[1] in available_protocols() and not Path(place).exists():
            rest = place[found.end() :]
            raise UserError(f"'{place}' is no URL", key=KEY, value=place, fix=f"did you mean '{found[1]}://{rest}'?")
    return False


def open_contents(place: str, cache: bool = False) -> Contents:
    """What is in the store at a place; nothing is written there.

    Args:
        place: see `open_store`.
        cache: the folder of this machine's cache in front of it instead.

    Raises:
        UserError: there is no store, or it cannot be read.
    """
    shared = is_url(place) or (Path(place) / ENTRIES).is_dir()
    url = Path(place).resolve().as_uri() if shared and not is_url(place) else place
    if cache:
        return FolderContents(cache_of(url if shared else str(Path(place).resolve())))
    return RemoteContents(open_remote(url, probe=False)) if shared else FolderContents(Path(place))


@lru_cache(64)
def open_remote(url: str, probe: bool = True) -> Remote:
    """The store at a URL; nothing is made there. A process opens it once.

    Args:
        url: of fsspec.
        probe: whether to try writing, with an object that is removed again.

    Raises:
        UserError: see `open_store`.
    """
    from fsspec.core import url_to_fs

    _check_protocol(url)
    shown = without_credentials(url)
    try:
        fs, root = url_to_fs(url, use_listings_cache=False)
        if not getattr(fs, "local_file", False):
            return Remote(fs, root, shown, probe and not _can_write(fs, root))
    except Exception as error:
        raise _unreachable(shown, error) from error
    folder = Path(root)
    writable = check_folder(folder)
    if not (folder / ENTRIES).is_dir() and any(folder.glob("*/variant.json")):
        raise UserError("is a store that is used as a folder", key=KEY, value=url, fix=f"store={folder}")
    return Remote(fs, root, shown, not writable)


def cache_of(place: str) -> Path:
    """The folder of this machine's cache that is in front of a store."""
    return cache_dir() / "stores" / hashlib.sha256(place.rstrip("/").encode()).hexdigest()[:16]


def check_folder(folder: Path) -> bool:
    """Whether a folder can be written, or made.

    Raises:
        UserError: it is a file, or can neither be made nor read.
    """
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise UserError(f"{there} is a file", key=KEY, value=str(folder), fix="choose a folder")
    writable = os.access(there, os.W_OK | os.X_OK)
    if there != folder and not writable:
        raise UserError(f"cannot make {folder}: you may not write to {there}", key=KEY, fix="choose another folder")
    if not os.access(there, os.R_OK | os.X_OK):
        raise UserError(f"you may not read {folder}", key=KEY, fix="choose another folder")
    return writable


def _check_protocol(url: str) -> None:
    from fsspec import available_protocols, get_filesystem_class

    protocol = url.partition("://")[0]
    if "::" in url:
        fix = "give the last part alone: optkit keeps a cache itself"
        raise UserError(f"'{without_credentials(url)}' is a chain of file systems", key=KEY, fix=fix)
    if protocol not in available_protocols():
        near = did_you_mean(protocol, available_protocols())
        fix = (
            near
            if near.endswith("?")
            else "give a folder, or a URL of fsspec such as s3://BUCKET/PATH or gs://BUCKET/PATH"
        )
        raise UserError(f"no file system '{protocol}://'", key=KEY, value=url, fix=fix)
    try:
        get_filesystem_class(protocol)
    except ImportError as error:
        package = re.search(r'[Ii]nstall "?([\w-]+)', str(error))
        message = f"{protocol}:// needs a package that is not installed: {first_line(error)}"
        fix = f"pip install {package[1]}" if package else "install it"
        raise UserError(message, key=KEY, value=url, fix=fix) from error


def _can_write(fs: AbstractFileSystem, root: str) -> bool:
    """Tries it with an object that is removed again; a place that cannot be read raises.

    No folder is made for it: s3fs would make a bucket that is spelt wrong.
    """
    probe = f"{root.rstrip('/')}/probe-{uuid4().hex}"
    try:
        fs.pipe_file(probe, b"")
        fs.rm_file(probe)
        return True
    except (PermissionError, NotImplementedError):
        pass
    except OSError as error:
        if error.errno not in NO_RIGHT:
            raise
    fs.ls(root)
    return False


def _unreachable(url: str, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"there is no {url}", key=KEY, fix="make the bucket or the folder first, or check its name")
    if isinstance(error, PermissionError):
        return UserError(f"you may not read {url}: {first_line(error)}", key=KEY, fix="check your credentials")
    reason = f"{type(error).__name__}: {first_line(error)}"
    return UserError(f"cannot reach {url}: {reason}", key=KEY, fix="check the URL, the network and your credentials")
