"""Image data sets from parquet files, the hub, and folders of class folders."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optkit.core.errors import UserError, did_you_mean
from optkit.tasks.decode import decode_once, files_key
from optkit.tasks.image_classification import ImageClassification, stratified_split
from optkit.tasks.images import ImageSplit

SPLIT_SEED = 0
VALIDATION_NAMES = ("validation", "valid", "val", "dev")
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def _with_validation(splits: dict[str, ImageSplit], share: float) -> dict[str, ImageSplit]:
    """Cuts a stratified validation split from train where the data set has none of its own."""
    if "validation" in splits:
        return splits
    train, validation = stratified_split(splits["train"].labels, share, SPLIT_SEED)
    whole = splits["train"]
    return splits | {"train": whole.subset(train), "validation": whole.subset(validation)}


def _no_bars() -> None:
    """Keeps the data sets library's own bars out of logs and off terminals, where optkit draws its own."""
    from datasets import disable_progress_bars

    disable_progress_bars()


@dataclass(kw_only=True)
class _SplitFiles(ImageClassification):
    """What data sets read from files share.

    Attributes:
        path: the local folder.
        image_size: resize and center-crop to this; None keeps images as they are, all of one size.
        validation_share: share of train held out, by class, where there is no validation split.
    """

    path: str | None = None
    image_size: int | None = None
    validation_share: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.validation_share < 1:
            message = f"{self.validation_share} is not a share between 0 and 1"
            raise UserError(message, key="validation_share", value=self.validation_share)
        if self.path is not None and not Path(self.path).is_dir():
            raise UserError(f"no folder {self.path}", key="path", value=self.path, fix="check the path")
        if self.path is not None:
            self._check_splits(Path(self.path))

    def _check_splits(self, folder: Path) -> None:
        found = self._find(folder)
        for name in ("train", "test"):
            if name not in found:
                raise UserError(f"{folder} has no {name} split", key="path", value=self.path, fix=self._layout(name))

    @abstractmethod
    def _find(self, folder: Path) -> dict[str, Path]:
        """The splits found in the folder: the first file of each, or its folder."""

    @abstractmethod
    def _layout(self, split: str) -> str:
        """What the folder must hold for a split, for the error."""


@dataclass(kw_only=True)
class HubImages(_SplitFiles):
    """Images with labels from the Hugging Face hub, or from local parquet files in `path`.

    Attributes:
        dataset: the hub's id, used when `path` is None.
        image_column, label_column: names of the columns.
        classes_from: class names, when the files do not name them; None numbers them.
    """

    dataset: str
    image_column: str = "image"
    label_column: str = "label"
    classes_from: Sequence[str] | None = None

    def declared(self) -> tuple[int, list[int]] | None:
        if self.classes_from is None or self.image_size is None:
            return None
        return len(self.classes_from), [3, self.image_size, self.image_size]

    def _find(self, folder: Path) -> dict[str, Path]:
        found = {}
        for name in ("train", "validation", "test"):
            names = VALIDATION_NAMES if name == "validation" else (name,)
            if files := [f for n in names for f in sorted(folder.glob(f"{n}*.parquet"))]:
                found[name] = files[0]
        return found

    def _layout(self, split: str) -> str:
        return f"it needs {split}*.parquet"

    def load(self) -> tuple[dict[str, ImageSplit], list[str]]:
        tables = self._local() if self.path is not None else self._hub()
        splits = {name: self._decode(name, rows, key) for name, (rows, key) in tables.items()}
        known = self.classes_from or self._names_in(next(iter(tables.values()))[0])
        count = max(int(split.labels.max()) for split in splits.values()) + 1
        return _with_validation(splits, self.validation_share), list(known or map(str, range(count)))

    def _local(self) -> dict[str, tuple[Any, str]]:
        from datasets import Dataset

        assert self.path is not None
        _no_bars()
        found = {}
        for name, first in self._find(Path(self.path)).items():
            files = sorted(first.parent.glob(f"{first.name.split('.')[0].split('-')[0]}*.parquet"))
            rows = Dataset.from_parquet([str(f) for f in files], keep_in_memory=True)
            found[name] = (rows, files_key(files, self.image_size, self.image_column, self.label_column))
        return found

    def _hub(self) -> dict[str, tuple[Any, str]]:
        from datasets import load_dataset

        _no_bars()
        try:
            data = load_dataset(self.dataset)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            fix = "check the network, or give task.path=DIR with train and test parquet files"
            raise UserError(f"cannot load '{self.dataset}': {reason}", key="task.dataset", fix=fix) from error
        found = {}
        for name, rows in data.items():
            name = "validation" if name in VALIDATION_NAMES else name
            key = files_key([], rows._fingerprint, self.image_size, self.image_column, self.label_column)
            found[name] = (rows, key)
        return found

    def _names_in(self, rows: Any) -> list[str] | None:
        return getattr(rows.features[self.label_column], "names", None)

    def _decode(self, name: str, rows: Any, key: str) -> ImageSplit:
        for option, column in (("image_column", self.image_column), ("label_column", self.label_column)):
            if column not in rows.column_names:
                fix = did_you_mean(column, rows.column_names)
                raise UserError(f"{name} has no column '{column}'", key=f"task.{option}", value=column, fix=fix)

        def encoded() -> tuple[Sequence[bytes | Path], NDArray[np.int64]]:
            images = rows.data.column(self.image_column).to_pylist()
            labels = np.asarray(rows.data.column(self.label_column).to_pylist(), dtype=np.int64)
            return [i if isinstance(i, bytes) else i["bytes"] or Path(i["path"]) for i in images], labels

        return decode_once(key, encoded, self.image_size, f"{name} images")


@dataclass(kw_only=True)
class ImageFolder(_SplitFiles):
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
        classes = sorted(p.name for p in (folder / "train").iterdir() if p.is_dir())
        if len(classes) < 2:
            message = f"{folder / 'train'} has {len(classes)} class folders"
            raise UserError(message, key="task.path", fix="at least 2, each with its images")
        return classes

    def _find(self, folder: Path) -> dict[str, Path]:
        found = {name: folder / name for name in ("train", "test")}
        for name in VALIDATION_NAMES:
            if (folder / name).is_dir():
                found["validation"] = folder / name
        return {name: path for name, path in found.items() if path.is_dir()}

    def _layout(self, split: str) -> str:
        return f"it needs {split}/CLASS/*.png"

    def load(self) -> tuple[dict[str, ImageSplit], list[str]]:
        assert self.path is not None
        folders = self._find(Path(self.path))
        classes = self._class_names(Path(self.path))
        splits = {name: self._decode(name, folder, classes) for name, folder in folders.items()}
        return _with_validation(splits, self.validation_share), classes

    def _decode(self, name: str, folder: Path, classes: list[str]) -> ImageSplit:
        extra = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name not in classes)
        if extra:
            raise UserError(f"{name} has a class that train has not: '{extra[0]}'", key="task.path")
        files = [(f, n) for n, c in enumerate(classes) for f in sorted((folder / c).rglob("*"))]
        files = [(f, n) for f, n in files if f.suffix.lower() in SUFFIXES]
        if not files:
            raise UserError(f"{folder} holds no images", key="task.path", fix=f"known: {', '.join(SUFFIXES)}")
        paths = [f for f, _ in files]
        labels = np.asarray([n for _, n in files], dtype=np.int64)
        return decode_once(
            files_key(paths, self.image_size), lambda: (paths, labels), self.image_size, f"{name} images"
        )
