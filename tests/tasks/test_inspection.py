import os

import numpy as np
import pytest
from PIL import Image

from optkit.core.errors import UserError
from optkit.tasks.inspection import content_hash, inspected
from optkit.tasks.pictures import PictureInput, picture_size, read_mask


@pytest.fixture
def files(tmp_path):
    found = [tmp_path / f"{n}.txt" for n in range(3)]
    for n, file in enumerate(found):
        file.write_text(f"text {n}")
    return found


def test_files_are_looked_at_once_and_again_when_one_changes(files):
    seen = []

    def look(n):
        seen.append(n)
        return {"text": files[n].read_text()}

    def found():
        return [one["text"] for one in inspected("texts", [[file] for file in files], look, "texts")]

    assert found() == found() == ["text 0", "text 1", "text 2"]
    assert sorted(seen) == [0, 1, 2]
    files[1].write_text("another text")
    assert found()[1] == "another text"
    assert len(seen) == 6


def test_an_error_is_raised_and_nothing_is_kept(files):
    def look(n):
        if n == 1:
            raise UserError("it is bad")
        return n

    with pytest.raises(UserError, match="it is bad"):
        inspected("bad", [[file] for file in files], look, "texts")
    assert inspected("bad", [[file] for file in files], lambda n: n, "texts") == [0, 1, 2]


def test_the_hash_is_of_the_content(files):
    files[1].write_text("text 0")
    os.utime(files[1], (1, 1))
    assert content_hash(files[0]) == content_hash(files[1]) != content_hash(files[2])


def test_sizes_are_those_after_turning(tmp_path):
    picture = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    picture.save(tmp_path / "plain.jpg")
    assert picture_size(tmp_path / "plain.jpg") == (20, 30)
    assert picture_size(tmp_path / "turned.jpg") == (30, 20)
    whole = PictureInput(None, True, (0, 0, 0), (1, 1, 1))
    assert whole(tmp_path / "turned.jpg").shape == (3, 30, 20)


def test_pictures_are_stretched_or_cut(tmp_path):
    left_white = np.zeros((20, 40, 3), np.uint8)
    left_white[:, :20] = 255
    Image.fromarray(left_white).save(tmp_path / "a.png")
    plain = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    stretched = PictureInput((10, 16), True, **plain)(tmp_path / "a.png")
    cut = PictureInput((20, 20), False, **plain)(tmp_path / "a.png")
    assert stretched.shape == (3, 10, 16)
    assert stretched[:, :, :7].min() == 1
    assert stretched[:, :, 9:].max() == 0
    assert cut.shape == (3, 20, 20)
    assert (cut[:, :, :10].min(), cut[:, :, 10:].max()) == (1, 0)
    normal = PictureInput((20, 20), False, (0.5, 0.5, 0.5), (0.25, 0.5, 1))(tmp_path / "a.png")
    assert normal[:, 0, 0].tolist() == pytest.approx([2, 1, 0.5])


def test_masks_of_one_bit_hold_0_and_1(tmp_path):
    Image.fromarray(np.eye(4, dtype=bool)).save(tmp_path / "a.png")
    assert np.array_equal(read_mask(tmp_path / "a.png"), np.eye(4))
