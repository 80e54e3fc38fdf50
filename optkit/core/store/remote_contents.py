"""What is in a store of fsspec, for ``optkit store`` (see `optkit.core.store.contents`)."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict

from optkit.core.checksums import ENTRY, Entry
from optkit.core.errors import UserError, first_line
from optkit.core.store.contents import IS_DAMAGED, UNFINISHED, WHOLE, Stored, facts, seconds
from optkit.core.store.lease import is_held
from optkit.core.store.remote import ENTRIES, LEASES, SET_ASIDE, Remote

UPLOADING_S = 86_400.0  # files without a manifest may be on their way for so long


class RemoteContents:
    """The entries of a shared store (see `Contents`); their age counts from when they were made.

    Raises:
        UserError: there is no store, or it cannot be reached.
    """

    def __init__(self, remote: Remote):
        self.remote, self.fs = remote, remote.fs
        try:
            found = self.fs.exists(remote.path(ENTRIES)) or self.fs.exists(remote.path(LEASES))
        except Exception as error:
            raise UserError(f"cannot read {remote.url}: {first_line(error)}", key="STORE") from error
        if not found:
            raise UserError(f"no store at {remote.url}", key="STORE", fix="give the folder or URL that store= names")

    def entries(self) -> list[Stored]:
        try:
            listing = self.fs.find(self.remote.path(ENTRIES), detail=True)
        except FileNotFoundError:
            return []
        files: dict[str, dict[str, str]] = defaultdict(dict)
        for path in listing:
            variant_id, name = path.rsplit("/", 2)[-2:]
            files[variant_id][name] = path
        manifests = [held[ENTRY] for held in files.values() if ENTRY in held]
        texts = self.fs.cat(manifests, on_error="omit") if manifests else {}
        sizes = {path: listing[path].get("size") or 0 for path in listing}
        return [self._stored(one, held, sizes, texts.get(held.get(ENTRY, ""))) for one, held in sorted(files.items())]

    def remove(self, one: Stored) -> str | None:
        if is_held(self.fs, self.remote.lease(one.id)):
            return "a host makes it"
        if one.state == UNFINISHED and time.time() - one.used < UPLOADING_S:
            return "it may be on its way: it is less than a day old"
        folder = self.remote.path(ENTRIES, one.id)
        try:
            if one.state == WHOLE:  # readers must not find a manifest without files
                self.fs.rm_file(f"{folder}/{ENTRY}")
            self.fs.rm(folder, recursive=True)
        except FileNotFoundError:
            return None
        except Exception as error:  # noqa: BLE001 - each file system raises its own
            return first_line(error)
        return None

    def damage(self, one: Stored) -> str | None:
        entry = self.remote.entry(one.id)
        if entry is None:
            return f"{ENTRY} cannot be read"
        for name, expected in entry.files.items():
            try:
                with self.fs.open(self.remote.object(one.id, name, expected), "rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            except FileNotFoundError:
                return f"{name} is missing"
            if found != expected.sha256:
                return f"the bytes of {name} have changed (another SHA-256 than in {ENTRY})"
        return None

    def _stored(self, variant_id: str, held: dict[str, str], sizes: dict[str, int], text: bytes | None) -> Stored:
        size = sum(sizes[path] for path in held.values())
        try:
            about = dict(Entry.from_json(text).about) if text else {}
        except ValueError:
            about = {}
        if about:
            return Stored(variant_id, variant_id, WHOLE, size, seconds(about), **facts(about), checked=True)
        state = IS_DAMAGED if SET_ASIDE in held or ENTRY in held else UNFINISHED
        return Stored(variant_id, variant_id, state, size, self._modified(next(iter(held.values()))))

    def _modified(self, path: str) -> float:
        """When a file was written; now where a file system does not say, so that nothing is taken for old."""
        try:
            return float(self.fs.modified(path).timestamp())
        except (NotImplementedError, FileNotFoundError):
            return time.time()
