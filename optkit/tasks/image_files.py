"""Image data sets from parquet files, the hub, and folders of class folders."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optkit.core.errors import UserError
from optkit.core.task import NO_LABEL
from optkit.tasks.classification import UNLABELLED, with_validation
from optkit.tasks.decode import decode_once
from optkit.tasks.image_classification import ImageClassification
from optkit.tasks.image_listing import SUFFIXES, class_folders, list_classes, list_images, log_left_out
from optkit.tasks.images import ImageSplit
from optkit.tasks.labels import numbered, read_labels
from optkit.tasks.split_files import (
    SplitFiles,
    Table,
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


@dataclass(kw_only=True)
class _ImageFiles(SplitFiles, ImageClassification):
    """Images in files.

    Attributes:
        image_size: resize and center-crop to this; None keeps images as they are, all of one size.
    """

    image_size: int | None = None

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

    dataset: str
    image_column: str = "image"
    label_column: str = "label"
    classes_from: Sequence[str] | None = None

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
            tables = splits_of(hub_tables(self.dataset), self.dataset, ("train",), ("test",))
        labels = read_labels(tables, self.label_column)
        numbers, classes = numbered(tables, labels, self.label_column, self.classes_from)
        splits = {name: self._decode(name, tables[name], found) for name, found in numbers.items()}
        if self.unlabelled is not None:
            (table,) = read_tables({UNLABELLED: self.find_unlabelled(Path(self.unlabelled))}, UNLABELLED).values()
            splits[UNLABELLED] = self._decode(UNLABELLED, table, np.full(len(table.rows), NO_LABEL))
        return with_validation(splits, self.validation_share, classes), classes

    def _decode(self, name: str, table: Table, labels: NDArray[np.int64]) -> ImageSplit:
        def encoded() -> tuple[Sequence[bytes | Path], NDArray[np.int64]]:
            images = table.column(self.image_column, "image_column", name)
            return [_encoded(image, place, self.image_column, name) for place, image in enumerate(images)], labels

        label_column = None if name == UNLABELLED else self.label_column
        key = files_key([], table.key, self.image_size, self.image_column, label_column)
        # the kept labels may be numbers under other class names
        return replace(decode_once(key, encoded, self.image_size, name), labels=labels)


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
        return len(self._class_names(Path(self.path))), [3, self.image_size, self.image_size]

    @staticmethod
    def _class_names(folder: Path) -> list[str]:
        full, empty = class_folders(folder / "train")
        if len(full) < 2:
            message = f"{folder / 'train'} has {len(full)} class folders with images"
            if empty:
                message += f", and {len(empty)} without, such as '{empty[0].name}'"
            raise UserError(message, key="task.path", fix=f"at least 2, each with images ({' '.join(SUFFIXES)})")
        return [path.name for path in full]

    def find(self, folder: Path) -> Mapping[str, Path]:
        found = {name: folder / name for name in ("train", "test")}
        if name := one_name(name for name in VALIDATION_NAMES if (folder / name).is_dir()):
            found["validation"] = folder / name
        return {name: path for name, path in found.items() if path.is_dir()}

    def layout(self, split: str) -> str:
        return f"it needs {split}/CLASS/*.png"

    def find_unlabelled(self, path: Path) -> Sequence[Path]:
        return [path] if path.suffix.lower() in SUFFIXES and path.is_file() else list_images(path).images

    def load(self) -> tuple[dict[str, ImageSplit], list[str]]:
        assert self.path is not None
        folders = self.find(Path(self.path))
        classes = self._class_names(Path(self.path))
        splits = {name: self._decode(name, folder, classes) for name, folder in folders.items()}
        if self.unlabelled is not None:
            paths = self.find_unlabelled(Path(self.unlabelled))
            if (folder := Path(self.unlabelled)).is_dir():
                log_left_out(folder, list_images(folder).left_out)
            splits[UNLABELLED] = self._decode_files(UNLABELLED, paths, [NO_LABEL] * len(paths))
        return with_validation(splits, self.validation_share, classes), classes

    def _decode(self, name: str, folder: Path, classes: list[str]) -> ImageSplit:
        full, empty = class_folders(folder)
        if extra := [path.name for path in full if path.name not in classes]:
            raise UserError(f"{name} has a class that train has not: '{extra[0]}'", key="task.path")
        if empty and name == "train":
            names = ", ".join(f"'{path.name}'" for path in empty)
            log.warning("%s: %d folders hold no images and are no classes: %s", folder, len(empty), names)
        found = list_classes(folder, classes)
        log_left_out(folder, found.left_out)
        if not found.images:
            raise UserError(f"{folder} holds no images", key="task.path", fix=f"known: {', '.join(SUFFIXES)}")
        number = {label: n for n, label in enumerate(classes)}
        labels = [number[path.relative_to(folder).parts[0]] for path in found.images]
        return self._decode_files(name, found.images, labels)

    def _decode_files(self, name: str, paths: Sequence[Path], labels: Sequence[int]) -> ImageSplit:
        def encoded() -> tuple[Sequence[bytes | Path], NDArray[np.int64]]:
            return paths, np.asarray(labels, dtype=np.int64)

        return decode_once(files_key(paths, self.image_size), encoded, self.image_size, name)
