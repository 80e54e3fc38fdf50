"""What prepare.py makes of files is, bit by bit, what the task makes of them."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from optkit.deploy import export
from optkit.tasks import Digits, ImageFolder, TextFiles
from tests.deploy.alone import run_alone

DUMP = """
import numpy, sys
from prepare import examples, prepare
given = list(examples([sys.argv[2]]))
numpy.savez(sys.argv[3], *prepare([example for example, _ in given]).values())
print([label for _, label in given])
"""


class Head(nn.Module):
    """A classifier of anything: the mean of each input, projected."""

    def __init__(self, classes):
        super().__init__()
        self.project = nn.Linear(1, classes)

    def forward(self, *inputs):
        return self.project(sum(x.float().flatten(1).mean(1, keepdim=True) for x in inputs))


def prepared(task, tmp_path, given=None):
    """Inputs and labels of the test split, as prepare.py gives them."""
    folder = tmp_path / "export"
    export(Head(len(task.classes)).eval(), folder, engine="torch", task=task, test_files=True, force=True)
    given = given or folder / "test/test.csv"
    done = run_alone(folder, "-c", DUMP, given, tmp_path / "inputs.npz")
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "inputs.npz") as arrays:
        return list(arrays.values()), eval(done.stdout)  # noqa: S307


def wanted(task):
    batch = next(task.batches("test", task.size("test")))
    return [x.numpy() for x in batch.inputs], [task.classes[label] for label in batch.targets]


def check(task, tmp_path, given=None):
    (arrays, labels), (real, names) = prepared(task, tmp_path, given), wanted(task)
    assert labels == names
    assert len(arrays) == len(real)
    for ours, theirs in zip(arrays, real, strict=True):
        assert ours.dtype == theirs.dtype
        assert np.array_equal(ours, theirs)


def picture(random, mode, size):
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "LA": (2,)}[mode]
    return Image.fromarray(random.integers(0, 256, (*size[::-1], *channels), dtype=np.uint8), mode)


@pytest.fixture
def odd_pictures(tmp_path):
    """Class folders of pictures of every kind: turned, transparent, with a palette, in 16 bits, of other sizes."""
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("a cat", "dög"):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            turned = Image.Exif()
            turned[0x0112] = 6
            picture(random, "RGB", (31, 22)).save(folder / "turned.jpg", exif=turned)
            picture(random, "RGB", (21, 50)).save(folder / "tall.webp")
            picture(random, "RGBA", (24, 24)).save(folder / "transparent.png")
            picture(random, "LA", (33, 24)).save(folder / "grey_transparent.png")
            picture(random, "RGB", (40, 24)).quantize(16).save(folder / "palette.png")
            Image.fromarray(random.integers(0, 65536, (25, 27), dtype=np.uint16)).save(folder / "deep.png")
            picture(random, "RGB", (24, 24)).save(folder / "exact.PNG")
            (folder / ".hidden.png").write_bytes(b"no picture")
            (folder / "notes.txt").write_text("no picture")
    return tmp_path / "pictures"


def test_the_files_of_an_image_folder(odd_pictures, tmp_path):
    task = ImageFolder(path=str(odd_pictures), image_size=24, validation_share=0.4)
    check(task, tmp_path, given=odd_pictures / "test")


def test_written_test_images(odd_pictures, tmp_path):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    check(ImageFolder(path=str(odd_pictures), image_size=20, mean=mean, std=std, validation_share=0.4), tmp_path)


def test_digits(tmp_path):
    check(Digits(image_size=11, limit=40), tmp_path)


def test_an_image_of_another_size_where_none_is_resized(tmp_path):
    folder = tmp_path / "export"
    export(Head(10).eval(), folder, engine="torch", task=Digits(image_size=11, limit=40))
    Image.new("L", (28, 30)).save(tmp_path / "other.png")
    done = run_alone(folder, "infer.py", tmp_path / "other.png", refused=("optkit",))
    assert done.returncode == 1
    assert "other.png: 28x30 pixels; the model was measured on 11x11" in done.stderr


TEXTS = [
    'a "quoted" text, with a comma',
    "two\nlines",
    "",
    "Ünïcödé 漢字 🙂",
    "word " * 30_000,
    "  spaces  ",
    "tab\there",
]


def table(path, pairs):
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["first", "second", "label"][0 if pairs else 1 :])
        for n, text in enumerate(TEXTS * 4):
            texts = [TEXTS[n % 5], text] if pairs else [text]
            rows.writerow([*texts, ["bad", "good"][n % 2]])


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("limit", [None, 9])
def test_texts(tmp_path, pairs, limit):
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        table(data / f"{split}.csv", pairs)
    columns = ["first", "second"] if pairs else ["second"]
    task = TextFiles(
        path=str(data), text_columns=columns, vocab_size=512, max_length=24, limit=limit, validation_share=0.3
    )
    check(task, tmp_path)


@pytest.mark.slow
def test_a_table_of_ones_own(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        table(data / f"{split}.csv", pairs=False)
    task = TextFiles(path=str(data), text_columns=["second"], vocab_size=512, max_length=24, validation_share=0.3)
    folder = export(Head(2).eval(), tmp_path / "export", engine="torch", task=task).folder
    own = tmp_path / "own.csv"
    long = "word " * 30_000  # longer than the csv module takes by itself
    own.write_text(f"second,label\nfine,good\n,good\n{long},bad\n", encoding="utf-8-sig")  # as spreadsheets write it
    done = run_alone(folder, "infer.py", own, refused=("optkit",))
    assert done.stdout.endswith(" of 3)\n"), done.stderr
    own.write_text("second,label\nfine,1\n", encoding="utf-8")
    done = run_alone(folder, "infer.py", own, refused=("optkit",))
    assert done.returncode == 1
    assert done.stderr == "'1' is none of the classes in preprocess.json\n"


def test_every_value_of_a_pixel():
    """numpy's float32 arithmetic gives torch's bits for each value of a pixel."""
    from optkit.tasks.images import Normalization

    random = np.random.default_rng(0)
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    for mean, std in random.uniform(0.05, 0.95, (200, 2)).tolist():
        ours = (pixels.astype(np.float32) - np.float32(mean) * np.float32(255)) / (np.float32(std) * np.float32(255))
        assert np.array_equal(ours, Normalization((mean,), (std,))(torch.from_numpy(pixels)).numpy())
