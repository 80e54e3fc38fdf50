import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from optkit.core.errors import UserError
from optkit.tasks import ImageFolder
from optkit.tasks.rgb import to_rgb


def reopened(picture, kind, **options):
    """An image as it comes from a file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return Image.open(io.BytesIO(buffer.getvalue()))


def pixel(picture, place=(0, 0)):
    found = to_rgb(picture)
    assert found.mode == "RGB"
    return found.getpixel(place)


def grey(value, dtype):
    return Image.fromarray(np.full((2, 3), value, dtype=dtype))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(("value", "shown"), [(0, 0), (5000, 19), (30000, 117), (65535, 255)])
def test_16_bit_grey_is_scaled_over_its_whole_range(kind, value, shown):
    assert pixel(reopened(grey(value, np.uint16), kind)) == (shown,) * 3


def test_16_bit_colours_are_scaled_too():
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    data = zlib.compress(b"\0" + struct.pack(">HHH", 5000, 30000, 65535))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    assert pixel(Image.open(io.BytesIO(png))) == (19, 117, 255)


def test_a_pgm_of_12_bits_is_scaled_by_the_range_that_it_names():
    assert pixel(Image.open(io.BytesIO(b"P5 1 1 4095\n" + struct.pack(">H", 2048)))) == (128,) * 3


@pytest.mark.parametrize(("value", "shown"), [(0.0, 0), (0.5, 128), (1.0, 255)])
def test_floats_from_0_to_1_are_scaled(value, shown):
    assert pixel(reopened(grey(value, np.float32), "TIFF")) == (shown,) * 3


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (200.0, np.float32, "floats outside 0 to 1, such as 200"),
        (-0.1, np.float32, "such as -0.1"),
        (np.nan, np.float32, "such as nan"),
        (70000, np.int32, "32-bit integers, and does not say which is white"),
        (7, np.int32, "32-bit integers"),
    ],
)
def test_numbers_without_a_known_range_are_refused_with_the_files_name(image_folder, value, dtype, message):
    file = image_folder / "train" / "cat" / "0.tiff"
    grey(value, dtype).save(file)
    with pytest.raises(UserError, match=rf"{file}\) cannot be read: .*{message}"):
        _ = ImageFolder(path=str(image_folder), image_size=8).fingerprint


RED, WHITE, HALF = (255, 0, 0), (255, 255, 255), (255, 127, 127)


@pytest.mark.parametrize(("alpha", "shown"), [(0, WHITE), (128, HALF), (255, RED)])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_what_is_transparent_shows_white(alpha, shown, kind):
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    found = pixel(reopened(Image.new("RGBA", (2, 2), (*RED, alpha)), kind, **options))
    np.testing.assert_allclose(found, shown, atol=1)


@pytest.mark.parametrize(
    ("picture", "hidden"),
    [
        (Image.new("LA", (2, 2), (10, 0)), None),
        (Image.new("RGBA", (2, 2), (*RED, 0)).convert("P"), None),
        (Image.new("P", (2, 2), 0), 0),
        (Image.new("P", (2, 2), 0), b"\x00\x80"),
        (Image.new("L", (2, 2), 9), 9),
        (Image.new("RGB", (2, 2), (9, 8, 7)), (9, 8, 7)),
        (Image.new("1", (2, 2), 0), 0),
        (grey(5000, np.uint16), 5000),
    ],
    ids=["LA", "palette of colours with alpha", "palette", "palette with alphas", "L", "RGB", "1", "16 bits"],
)
def test_every_kind_of_transparency_shows_white(picture, hidden):
    found = reopened(picture, "PNG", **({} if hidden is None else {"transparency": hidden}))
    assert pixel(found) == WHITE


@pytest.mark.parametrize(
    ("picture", "kind", "shown"),
    [
        (Image.new("1", (2, 2), 1), "PNG", WHITE),
        (Image.new("L", (2, 2), 77), "PNG", (77, 77, 77)),
        (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "TIFF", RED),
        (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "JPEG", (254, 0, 0)),
        (Image.new("RGB", (2, 2), RED).convert("P"), "PNG", RED),
    ],
)
def test_other_modes_keep_their_colour(picture, kind, shown):
    np.testing.assert_allclose(pixel(reopened(picture, kind)), shown, atol=2)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_an_image_is_turned_as_its_exif_says(orientation, kind):
    # what a camera held in each of the eight ways stores (EXIF 2.3, 4.6.4), undone by hand
    pixels = np.zeros((16, 24, 3), dtype=np.uint8)
    pixels[:8, :8] = 255
    undo = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](pixels)))
    found = np.asarray(to_rgb(reopened(stored, kind, exif=exif, **({"quality": 100} if kind == "JPEG" else {}))))
    np.testing.assert_allclose(found, pixels, atol=3)
