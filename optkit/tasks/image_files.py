"""Image data sets from parquet files, the hub, and folders of class folders."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optkit.core.checks import check_count, check_share
from optkit.core.errors import UserError
from optkit.core.memory import available_memory
from optkit.core.task import NO_LABEL
from optkit.tasks.classification import UNLABELLED, with_validation
from optkit.tasks.decode import LazyImages, decode_once
from optkit.tasks.given import default_workers
from optkit.tasks.image_classification import ImageClassification
from optkit.tasks.image_listing import (
    SUFFIXES,
    ClassListing,
    Files,
    Listing,
    list_classes,
    list_images,
    log_left_out,
)
from optkit.tasks.images import ImageSplit, Sources
from optkit.tasks.labels import numbered, read_labels
from optkit.tasks.split_files import (
    SplitFiles,
    Table,
    check_source,
    files_in,
    files_key,
    hub_tables,
    read_folder,
    read_tables,
    splits_of,
)
from optkit.tasks.split_names import VALIDATION_NAMES, find_tables, needed_for, one_name

log = logging.getLogger(__name__)
TABLES = (".parquet",)


HASHED_BYTES = 1 << 30  # of pixels: of more, the fingerprint is of files' names, sizes and times


@dataclass(frozen=True)
class Undecoded:
    """A split before its images are decoded.

    Attributes:
        encoded: files, or images as bytes.
        labels: class numbers ``(N,)``.
        sources: what stands for the images where there are too many to hash.
        key: under which the decoded images are kept.
    """

    encoded: Sequence[bytes | Path]
    labels: NDArray[np.int64]
    sources: Sources
    key: str


@dataclass(kw_only=True)
class _ImageFiles(SplitFiles, ImageClassification):
    """Images in files.

    Attributes:
        image_size: resize and center-crop to this; None keeps images as they are, all of one size.
        memory_share: images that take no more than this share of the free memory are decoded once, and kept in the
            cache; of more, every batch is decoded when it is asked for. Neither changes a result.
        workers: processes that decode then; None takes the number of usable cores.
    """

    image_size: int | None = None
    memory_share: float = 0.25
    workers: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("memory_share", self.memory_share)
        if self.workers is not None:
            check_count("workers", self.workers, least=0)

    def decode(self, found: Mapping[str, Undecoded]) -> dict[str, ImageSplit]:
        """The splits, decoded now if they fit, else whenever they are asked for."""
        lazy = {
            name: LazyImages(split.encoded, self.image_size, name, np.arange(len(split.labels)))
            for name, split in found.items()
        }
        total = sum(math.prod(images.shape) for images in lazy.values() if len(images))
        self._of_sources = total > HASHED_BYTES
        self._lazy = total > self.memory_share * available_memory()
        if self._lazy:
            log.info("images are decoded as they are read: all of them take %.1f GB", total / 1e9)
        workers = default_workers() if self.workers is None else self.workers
        splits = {}
        for name, split in found.items():
            images: Any = lazy[name] if self._lazy else decode_once(split.key, split.encoded, self.image_size, name)
            sources = split.sources if self._of_sources else None
            splits[name] = ImageSplit(images, split.labels, sources, workers if self._lazy else 0)
        return splits

    def facts(self) -> dict[str, Any]:
        found = super().facts()
        of = "names, sizes and times of the files" if self._of_sources else "pixels"
        return found | {"fingerprint_of": of, "decoded": "at every reading" if self._lazy else "once"}

    def preprocessing(self) -> dict[str, Any]:
        found = super().preprocessing()
        if self.image_size is None:
            return found
        rule = {"shorter_side": self.image_size, "filter": "bicubic", "then_crop": "center"}
        return found | {"resize": rule}


@dataclass(kw_only=True)
class HubImages(_ImageFiles):
    """Images with labels from the Hugging Face hub, or from local parquet files in `path`.

    Attributes:
        dataset: the hub's id, used when `path` is None.
        image_column, label_column: names of the columns.
        classes_from: class names, when the files do not name them; None numbers them, or, of a column of names, takes
            those of the train split in alphabetical order.
    """

    dataset: str | None = None
    image_column: str = "image"
    label_column: str = "label"
    classes_from: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_source(self.path, self.dataset)
        super().__post_init__()

    def declared(self) -> tuple[int, list[int]] | None:
        if self.classes_from is None or self.image_size is None:
            return None
        return len(self.classes_from), [3, self.image_size, self.image_size]

    def find(self, folder: Path) -> Mapping[str, Sequence[Path]]:
        return find_tables(folder, TABLES)

    def layout(self, split: str) -> str:
        return needed_for(split, Path(str(self.path)), TABLES)

    def find_unlabelled(self, path: Path) -> Sequence[Path]:
        return files_in(path, TABLES)

    def load(self) -> tuple[dict[str, ImageSplit], list[str]]:
        if self.path is not None:
            tables = read_folder(Path(self.path), TABLES)
        else:
            assert self.dataset is not None
            tables = splits_of(hub_tables(self.dataset, self.subset), self.dataset)
        labels = read_labels(tables, self.label_column)
        numbers, classes = numbered(tables, labels, self.label_column, self.classes_from)
        found = {name: self._undecoded(name, tables[name], of) for name, of in numbers.items()}
        if self.unlabelled is not None:
            (table,) = read_tables({UNLABELLED: self.find_unlabelled(Path(self.unlabelled))}, UNLABELLED).values()
            found[UNLABELLED] = self._undecoded(UNLABELLED, table, np.full(len(table.rows), NO_LABEL))
        return with_validation(self.decode(found), self.validation_share, classes), classes

    def _undecoded(self, name: str, table: Table, labels: NDArray[np.int64]) -> Undecoded:
        label_column = None if name == UNLABELLED else self.label_column
        key = files_key([], table.key, self.image_size, self.image_column, label_column)
        cells = Cells(table.cells(self.image_column, "image_column", name), self.image_column, name)
        return Undecoded(cells, labels, Places(table.key, np.arange(len(labels))), key)


@dataclass(frozen=True)
class Cells(Sequence[Any]):
    """The images in a column of a table: each as bytes, or as the file that the cell names.

    Attributes:
        values: the column, a ``pyarrow.ChunkedArray``.
        column: its name.
        split: for errors.
    """

    values: Any
    column: str
    split: str

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, place: Any) -> Any:
        return _encoded(self.values[place].as_py(), place, self.column, self.split)


@dataclass(frozen=True)
class Places:
    """Rows of a table.

    Attributes:
        key: of the table; changes when one of its files does.
        index: the places ``(N,)``.
    """

    key: str
    index: NDArray[np.int64]

    def subset(self, index: NDArray[np.int64]) -> Places:
        return Places(self.key, self.index[index])

    def digest(self) -> str:
        return f"{self.key} {hashlib.sha256(self.index.tobytes()).hexdigest()}"

    def hashes(self) -> list[bytes]:
        return [f"{self.key} {place}".encode() for place in self.index]


def _encoded(image: Any, place: int, column: str, split: str) -> bytes | Path:
    """The bytes or the file of a cell: ``bytes``, or what ``datasets.Image`` stores."""
    found = image.get("bytes") or image.get("path") if isinstance(image, dict) else image
    if isinstance(found, bytes):
        return found
    if not isinstance(image, dict) or not isinstance(found, str):
        message = f"{split}: row {place} of '{column}' is no image: {str(image)[:40]!r}"
        raise UserError(message, key="task.image_column", value=column, fix="name another column, or take the row out")
    return Path(found)


@dataclass(kw_only=True)
class ImageFolder(_ImageFiles):
    """A folder with ``train/CLASS/*.png`` and ``test/CLASS/*.png``, and ``validation/`` if there is one."""

    image_size: int | None = 224

    def __post_init__(self) -> None:
        if self.path is None:
            raise UserError("missing", key="path", fix="set task.path=DIR, which holds train/ and test/")
        super().__post_init__()

    def declared(self) -> tuple[int, list[int]] | None:
        assert self.path is not None
        if self.image_size is None:
            return None
        return len(self._train.classes), [3, self.image_size, self.image_size]

    @cached_property
    def _train(self) -> ClassListing:
        folder = Path(str(self.path)) / "train"
        found = list_classes(folder)
        if len(found.classes) < 2:
            message = f"{folder} has {len(found.classes)} class folders with images"
            if found.empty:
                message += f", and {len(found.empty)} without, such as '{found.empty[0]}'"
            raise UserError(message, key="task.path", fix=f"at least 2, each with images ({' '.join(SUFFIXES)})")
        return found

    def find(self, folder: Path) -> Mapping[str, Path]:
        found = {name: folder / name for name in ("train", "test")}
        if name := one_name(name for name in VALIDATION_NAMES if (folder / name).is_dir()):
            found["validation"] = folder / name
        return {name: path for name, path in found.items() if path.is_dir()}

    def layout(self, split: str) -> str:
        return f"it needs {split}/CLASS/*.png"

    def find_unlabelled(self, path: Path) -> Sequence[Path]:
        if path.is_file():
            return [path] if path.suffix.lower() in SUFFIXES else []
        return list_images(path).images if path.is_dir() else []

    def load(self) -> tuple[dict[str, ImageSplit], list[str]]:
        assert self.path is not None
        folders = self.find(Path(self.path))
        classes = self._train.classes
        found = {name: self._undecoded(name, folder, classes) for name, folder in folders.items()}
        if self.unlabelled is not None:
            folder = Path(self.unlabelled)
            listing = list_images(folder) if folder.is_dir() else Listing(Files.one(folder))
            log_left_out(folder, listing.left_out)
            found[UNLABELLED] = self._of_files(listing.images, np.full(len(listing.images), NO_LABEL))
        return with_validation(self.decode(found), self.validation_share, classes), classes

    def _undecoded(self, name: str, folder: Path, classes: list[str]) -> Undecoded:
        found = self._train if name == "train" else list_classes(folder)
        if extra := [label for label in found.classes if label not in classes]:
            raise UserError(f"{name} has a class that train has not: '{extra[0]}'", key="task.path")
        if found.empty and name == "train":
            names = ", ".join(f"'{label}'" for label in found.empty)
            log.warning("%s: %d folders hold no images and are no classes: %s", folder, len(found.empty), names)
        log_left_out(folder, found.left_out)
        if not found.images:
            raise UserError(f"{folder} holds no images", key="task.path", fix=f"known: {', '.join(SUFFIXES)}")
        numbers = [classes.index(label) for label in found.classes]
        return self._of_files(found.images, np.repeat(np.asarray(numbers, dtype=np.int64), found.counts))

    def _of_files(self, files: Files, labels: NDArray[np.int64]) -> Undecoded:
        key = files_key([], os.path.realpath(files.folder), files.digest(), self.image_size)
        return Undecoded(files, labels, files, key)
