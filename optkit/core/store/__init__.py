"""The stage store: variants by id, so that a prefix that chains share is computed once, whatever run asks for it.

`open_store` gives a `FolderStore` for a folder, and a `SharedStore` for a URL of fsspec (``s3://...``), which has a
folder of this machine's cache in front.
"""

from __future__ import annotations

from optkit.core.store.folder import FolderStore, StageStore
from optkit.core.store.opening import check_store, open_store

__all__ = ["FolderStore", "StageStore", "check_store", "open_store"]
