"""Any picture to 8-bit RGB, as a viewer would show it, and to a square.

`optkit.export` puts a copy of this file beside an exported model: it imports numpy and Pillow alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FULL_16 = 65535
WHITE = (255, 255, 255, 255)


def to_rgb(picture: Any) -> Any:
    """An opened Pillow image, which may be changed, as mode ``RGB``.

    It is turned as its EXIF orientation says. What is transparent shows white. 16-bit grey (0 to 65,535) and floats
    (0 to 1) are scaled to 0 to 255. Of several frames the first counts.

    Raises:
        ValueError: 32-bit integers, whose range no file says, or floats outside 0 to 1.
    """
    from PIL import Image, ImageOps

    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode.startswith("I") or picture.mode == "F":
        return Image.fromarray(_bytes_of(picture)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, WHITE), picture).convert("RGB")
    return picture.convert("RGB")


def fitted(picture: Any, size: int) -> Any:
    """The middle of a picture as a square of ``size`` pixels, its shorter side resized to that (bicubic).

    One of that size already stays as it is.
    """
    from PIL import Image

    if picture.size == (size, size):
        return picture
    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    return picture.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))


def _bytes_of(picture: Any) -> NDArray[np.uint8]:
    """Grey of more than 8 bits as uint8 ``(H, W)``."""
    values = np.asarray(picture)
    if picture.mode == "F":
        outside = values[~((values >= 0) & (values <= 1))]
        if outside.size:
            raise ValueError(f"it holds floats outside 0 to 1, such as {outside[0]:g}; save it in 8 or 16 bits")
        return np.rint(values * 255).astype(np.uint8)
    # Pillow scales a PGM of any depth to 16 bits
    if picture.mode == "I" and picture.format != "PPM":
        raise ValueError("it holds 32-bit integers, and does not say which is white; save it in 8 or 16 bits")
    shown = np.rint(values.astype(np.float64) * (255 / FULL_16)).astype(np.uint8)
    hidden = picture.info.get("transparency")
    return shown if hidden is None else np.where(values == hidden, np.uint8(255), shown)
