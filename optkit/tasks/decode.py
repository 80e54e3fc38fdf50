"""Decodes image files and encoded bytes once. The arrays are cached and memory-mapped."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from optkit.core.cache import kept
from optkit.core.errors import UserError, first_line
from optkit.core.progress import track
from optkit.tasks.classification import UNLABELLED
from optkit.tasks.images import ImageSplit
from optkit.tasks.rgb import fitted, to_rgb

FORMAT = 2  # of what is kept: raise it when the same file gives other pixels
# what Pillow's readers raise on files that do not go on as they begin
UNREADABLE = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, struct.error, zlib.error,
)  # fmt: skip


def decode_once(
    key: str, encoded: Callable[[], tuple[Sequence[bytes | Path], NDArray[np.int64]]], size: int | None, split: str
) -> ImageSplit:
    """The decoded split under ``key``, decoding what ``encoded()`` gives if it is not kept yet.

    Args:
        key: from `optkit.tasks.split_files.files_key`.
        encoded: gives images (bytes or files) and labels ``(N,)``; called only when needed.
        size: images are resized (shorter side, bicubic) and center-cropped to this; None keeps them, and then all
            must be of one size.
        split: its name, for the progress bar and errors.

    Raises:
        UserError: an image that cannot be read, or is of another size than the first if none is set.
    """

    def make(new: Path) -> None:
        images, labels = encoded()
        _decode_to(new, images, size, split)
        np.save(new / "labels.npy", labels, allow_pickle=False)

    folder = kept("images", f"{key}-{FORMAT}", make)
    pixels = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
    return ImageSplit(pixels, np.load(folder / "labels.npy", allow_pickle=False))


def _decode_to(folder: Path, images: Sequence[bytes | Path], size: int | None, split: str) -> None:
    first = _decode(images[0], size, split, 0)
    shape = (len(images), *first.shape)
    out = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    for place, image in enumerate(track(images, f"decoding {split} images", len(images))):
        pixels = _decode(image, size, split, place)
        if pixels.shape != first.shape:
            message = f"{split} image {place} is {pixels.shape[1:]}, the first {first.shape[1:]}"
            raise UserError(message, key="task.image_size", fix="set task.image_size")
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
