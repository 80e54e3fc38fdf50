"""Decodes images: once, into arrays that are cached and memory-mapped, or whenever they are asked for."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optkit.core.cache import kept
from optkit.core.errors import UserError, first_line
from optkit.core.progress import track
from optkit.tasks.classification import UNLABELLED
from optkit.tasks.rgb import fitted, to_rgb

FORMAT = 3  # of what is kept: raise it when the same file gives other pixels
# what Pillow's readers raise on files that do not go on as they begin
UNREADABLE = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, struct.error, zlib.error,
)  # fmt: skip


def decode_once(key: str, encoded: Sequence[bytes | Path], size: int | None, split: str) -> NDArray[np.uint8]:
    """The images kept under ``key``, a memory map ``(N, 3, H, W)``; decoded now if they are not kept yet.

    Args:
        key: from `optkit.tasks.split_files.files_key`.
        encoded: files, or images as bytes.
        size: images are resized (shorter side, bicubic) and center-cropped to this; None keeps them, and then all
            must be of one size.
        split: its name, for the progress bar and errors.

    Raises:
        UserError: an image that cannot be read, or is of another size than the first if none is set.
    """

    folder = kept("images", f"{key}-{FORMAT}", lambda new: _decode_to(new, encoded, size, split))
    return np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)


@dataclass(frozen=True)
class LazyImages:
    """Images ``(N, 3, H, W)`` uint8 that are decoded whenever they are asked for, the same as `decode_once` gives.

    Attributes:
        encoded: files, or images as bytes.
        size: see `decode_once`.
        split: for errors.
        places: which of the encoded images these are ``(N,)``.
    """

    encoded: Sequence[bytes | Path]
    size: int | None
    split: str
    places: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.places)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self._first)

    @cached_property
    def _first(self) -> tuple[int, ...]:
        """The shape of an image, ``(3, H, W)``."""
        if self.size is not None:
            return 3, self.size, self.size
        return _decode(self.encoded[0], self.size, self.split, 0).shape

    def subset(self, index: NDArray[np.int64]) -> LazyImages:
        return LazyImages(self.encoded, self.size, self.split, self.places[index])

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        places = self.places[index].tolist()
        found = np.empty((len(places), *self._first), dtype=np.uint8)
        for row, place in enumerate(places):
            pixels = _decode(self.encoded[place], self.size, self.split, place)
            _check_shape(pixels.shape, self._first, self.split, place)
            found[row] = pixels
        return found


def _check_shape(shape: tuple[int, ...], first: tuple[int, ...], split: str, place: int) -> None:
    if shape != first:
        message = f"{split} image {place} is {shape[1:]}, the first {first[1:]}"
        raise UserError(message, key="task.image_size", fix="set task.image_size")


def _decode_to(folder: Path, images: Sequence[bytes | Path], size: int | None, split: str) -> None:
    first = _decode(images[0], size, split, 0)
    shape = (len(images), *first.shape)
    out = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    for place, image in enumerate(track(images, f"decoding {split} images", len(images))):
        pixels = _decode(image, size, split, place)
        _check_shape(pixels.shape, first.shape, split, place)
        out[place] = pixels
    out.flush()


def _decode(image: bytes | Path, size: int | None, split: str, place: int) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            picture = to_rgb(opened)
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        name = f" ({image})" if isinstance(image, Path) else f" of {len(image)} bytes"
        setting = "task.unlabelled" if split == UNLABELLED else "task.path"
        message = f"{split} image {place}{name} cannot be read: {reason_unreadable(image, error)}"
        raise UserError(message, key=setting, fix="repair the file, or take it out") from error
    picture = picture if size is None else fitted(picture, size)
    return np.asarray(picture).transpose(2, 0, 1)


def reason_unreadable(image: bytes | Path, error: Exception) -> str:
    """Why Pillow could not read a file, or encoded bytes, in words."""
    from PIL import UnidentifiedImageError

    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, UnidentifiedImageError):
        size = len(image) if isinstance(image, bytes) else image.stat().st_size
        return "it is no image that Pillow knows" if size else "it is empty"
    return first_line(error)
