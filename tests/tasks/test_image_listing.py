import logging
import shutil

import pytest
from PIL import Image

from optkit.core.errors import UserError
from optkit.tasks import ImageFolder


def _task(folder, **options):
    return ImageFolder(path=str(folder), image_size=8, **options)


def _image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path, "PNG")


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.WARNING, logger="optkit")
    return lambda: [record.getMessage() for record in caplog.records]


def test_hidden_and_empty_folders_are_no_classes(image_folder, said):
    before = _task(image_folder).fingerprint
    for name in (".cache", ".ipynb_checkpoints", "__MACOSX"):
        _image(image_folder / "train" / name / "0.png")
        _image(image_folder / "test" / name / "0.png")
    _image(image_folder / "train" / "cat" / ".trash" / "0.png")
    _image(image_folder / "train" / "cat" / "._0.png")  # what macOS leaves on other disks
    (image_folder / "train" / "empty").mkdir()
    (image_folder / "train" / "emptier" / "within").mkdir(parents=True)
    (image_folder / "test" / "empty").mkdir()
    task = _task(image_folder)
    assert task.model_defaults()["num_classes"] == 2
    assert said() == []
    assert task.classes == ["cat", "dog"]
    assert task.fingerprint == before
    train = image_folder / "train"
    assert said() == [
        f"{train}: 2 folders hold no images and are no classes: 'emptier', 'empty'",
        f"{train}: left out 2 files: 2 hidden (.bmp .jpeg .jpg .png .ppm .tif .tiff .webp are read)",
    ]


def test_what_is_skipped_is_said_once_with_counts_by_suffix(image_folder, said):
    train = image_folder / "train"
    for name in ("a.gif", "b.gif", "c.TXT", "notes"):
        (train / "cat" / name).write_text("")
    _image(train / "beside.png")
    task = _task(image_folder)
    for _ in range(2):
        assert task.size("train") + task.size("validation") == 24
    (line,) = said()
    assert line.startswith(
        f"{train}: left out 5 files: 2 .gif, 1 .txt, 1 images beside the class folders, 1 without a suffix"
    )


def test_unlabelled_images_are_listed_the_same_way(image_folder, tmp_path, said):
    _image(tmp_path / "more" / "a" / "0.png")
    _image(tmp_path / "more" / ".hidden" / "0.png")
    (tmp_path / "more" / "a.gif").write_text("")
    assert len(_task(image_folder, unlabelled=str(tmp_path / "more"))._loaded[0]["unlabelled"]) == 1
    (line,) = said()
    assert "left out 2 files: 1 .gif, 1 hidden" in line


def test_suffixes_in_capitals_and_folders_named_like_images(image_folder):
    _image(image_folder / "train" / "cat" / "UPPER.PNG")
    (image_folder / "train" / "cat" / "folder.png").mkdir()
    task = _task(image_folder)
    assert task.size("train") + task.size("validation") == 25


def test_a_class_that_train_has_not_is_named(image_folder):
    _image(image_folder / "test" / "bird" / "0.png")
    with pytest.raises(UserError, match="test has a class that train has not: 'bird'"):
        _ = _task(image_folder).fingerprint


def test_fewer_than_two_classes_name_the_folders_without_images(image_folder):
    for file in (image_folder / "train" / "dog").iterdir():
        file.rename(file.with_suffix(".gif"))
    with pytest.raises(UserError, match="has 1 class folders with images, and 1 without, such as 'dog'"):
        _ = _task(image_folder).fingerprint


def test_links_to_files_and_folders_are_followed_once(image_folder, tmp_path):
    before = _task(image_folder).fingerprint
    cats = image_folder / "train" / "cat"
    moved = tmp_path / "moved"
    shutil.move(cats, moved)
    cats.symlink_to(moved)
    (cats / "circle").symlink_to(image_folder / "train")
    (moved / "again").symlink_to(moved)
    file = image_folder / "train" / "dog" / "0.png"
    file.rename(tmp_path / "stored.png")
    file.symlink_to(tmp_path / "stored.png")
    (moved / "circle").unlink()
    assert _task(image_folder).fingerprint == before


def test_a_link_to_nothing_is_named(image_folder):
    link = image_folder / "train" / "cat" / "lost.png"
    link.symlink_to(image_folder / "nowhere.png")
    with pytest.raises(UserError, match="lost.png is a link to nothing"):
        _ = _task(image_folder).fingerprint


def test_two_validation_folders_are_refused(image_folder):
    for name in ("val", "dev"):
        shutil.copytree(image_folder / "test", image_folder / name)
    with pytest.raises(UserError, match="the validation split is there as val and as dev"):
        _task(image_folder)
