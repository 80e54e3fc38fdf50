"""Picture files as model inputs, each read when it is asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optkit.core.errors import UserError
from optkit.tasks.decode import UNREADABLE, reason_unreadable
from optkit.tasks.rgb import fitted, to_rgb

if TYPE_CHECKING:
    from torch import Tensor

ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and the values under which height and width change places
FIX = "repair the file, or take it out"
MASK_MODES = ("1", "L", "P", "I;16", "I")  # one number a pixel


@dataclass(frozen=True)
class PictureInput:
    """Makes a model's input of a picture.

    Attributes:
        size: height and width; None keeps the picture's own.
        whole: whether pictures are stretched to the size; otherwise the shorter side is resized, and the middle cut
            out, which must be a square.
        mean: per channel of [0, 1] pixels.
        std: likewise.
    """

    size: tuple[int, int] | None
    whole: bool
    mean: Sequence[float]
    std: Sequence[float]

    def __call__(self, path: Path) -> Tensor:
        """``(3, H, W)`` float32."""
        import torch

        mean, std = (np.asarray(x, dtype=np.float32)[:, None, None] * np.float32(255) for x in (self.mean, self.std))
        return torch.from_numpy((self.pixels(path).astype(np.float32) - mean) / std)

    def pixels(self, path: Path) -> NDArray[np.uint8]:
        """``(3, H, W)``"""
        picture = read_rgb(path)
        if self.size is not None and picture.size != self.size[::-1]:
            picture = stretched(picture, self.size) if self.whole else fitted(picture, self.size[0])
        return np.array(picture).transpose(2, 0, 1)


def file_below(folder: Path, name: object, what: str, key: str = "task.images") -> Path:
    """The file of a name that data give. Links within the folder are followed.

    Args:
        folder: that names are below.
        name: such as ``a/0001.png``.
        what: names it, for the error.
        key: the config key to blame.

    Raises:
        UserError: it is not there, or it would lie outside of the folder.
    """
    file = folder / str(name or "")
    try:
        is_there = file.is_file()
    except (OSError, ValueError):  # a name that no file can have
        is_there = False
    fix = "names are below task.images or task.path"
    if not is_there:
        raise UserError(f"{what} names {str(file)[:200] if name else 'nothing'}, which is not there", key=key, fix=fix)
    if not Path(os.path.abspath(file)).is_relative_to(os.path.abspath(folder)):
        raise UserError(f"{what} names {file}, which is not in {folder}", key=key, fix=fix)
    return file


def read_rgb(path: Path) -> Any:
    """A Pillow image of mode ``RGB``.

    Raises:
        UserError: the file cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(path) as opened:
            return to_rgb(opened)
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width of a picture, turned as its EXIF orientation says; reads no pixels.

    Raises:
        UserError: the file is no picture.
    """
    from PIL import Image

    try:
        with Image.open(path) as opened:
            width, height = opened.size
            turned = opened.getexif().get(ORIENTATION) in TURNED
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error
    return (width, height) if turned else (height, width)


def read_mask(path: Path) -> NDArray[np.int64]:
    """The number at each pixel of a mask, ``(H, W)``: of a palette its place, of grey its value.

    Raises:
        UserError: the file cannot be read, or holds colours.
    """
    from PIL import Image

    try:
        with Image.open(path) as opened:
            mode, numbers = opened.mode, np.asarray(opened)
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error
    if mode not in MASK_MODES:
        message = f"the mask {path} holds colours ({mode}), not one class number a pixel"
        raise UserError(message, key="task.masks", fix="save masks as PNG with a palette, or in grey")
    return numbers.astype(np.int64)


def stretched(picture: Any, size: tuple[int, int], *, nearest: bool = False) -> Any:
    """A Pillow image at a height and width, whatever its own are: bilinear, or the nearest pixel."""
    from PIL import Image

    return picture.resize(size[::-1], Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR)


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} cannot be read: {reason_unreadable(path, error)}", key="task.path", fix=FIX)
