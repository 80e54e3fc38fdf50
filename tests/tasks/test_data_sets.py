import io
import os

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from optkit.core.errors import UserError
from optkit.tasks import Digits, HubImages, ImageFolder, TextFiles, decode, image_files, text_files
from optkit.tasks.images import ImageSplit
from optkit.tasks.split_files import Table


def test_digits_are_all_there_once_and_balanced():
    digits = Digits()
    sizes = {name: digits.size(name) for name in ("train", "validation", "test")}
    assert sizes == {"train": 1077, "validation": 180, "test": 540}
    seen = [tuple(x.flatten().tolist()) for n in sizes for b in digits.batches(n, 500) for x in b.inputs[0]]
    from sklearn.datasets import load_digits

    unique = len({tuple(i.flatten()) for i in load_digits().images})
    assert len(seen) == 1797
    assert len(set(seen)) == unique
    for name, size in sizes.items():
        labels = torch.cat([b.targets for b in digits.batches(name, 500)])
        counts = torch.bincount(labels, minlength=10)
        assert (counts - size / 10).abs().max() <= size * 0.01 + 1
    assert digits.model_defaults() == {
        "num_classes": 10, "inputs": ["pixel_values"], "in_channels": 1, "input_shape": [1, 16, 16],
    }  # fmt: skip


def test_the_fingerprint_changes_with_what_the_model_sees():
    prints = {Digits(limit=64).fingerprint, Digits(limit=64, image_size=8).fingerprint, Digits(limit=64, crop=1).fingerprint,
              Digits(limit=65).fingerprint, Digits(limit=64, mean=[0.5], std=[0.5]).fingerprint}  # fmt: skip
    assert len(prints) == 5
    assert Digits(limit=64).fingerprint == Digits(limit=64).fingerprint


def test_the_metrics_are_chosen_by_name():
    assert [metric.name for metric in Digits().metrics] == ["accuracy"]
    assert [metric.name for metric in Digits(metrics=["macro_f1", "accuracy"]).metrics] == ["macro_f1", "accuracy"]
    with pytest.raises(UserError, match="no metric 'acuracy'"):
        Digits(metrics=["acuracy"])


def test_folders_of_class_folders(image_folder):
    task = ImageFolder(path=str(image_folder), image_size=8, validation_share=0.25)
    assert task.classes == ["cat", "dog"]
    assert (task.size("train"), task.size("validation"), task.size("test")) == (18, 6, 8)
    batch = next(task.batches("test", 8))
    assert batch.inputs[0].shape == (8, 3, 8, 8)
    brightness = batch.inputs[0].mean((1, 2, 3))
    assert brightness[batch.targets == 0].max() < brightness[batch.targets == 1].min()


def test_batches_under_a_seed_are_a_sample_of_a_split_that_lists_class_by_class(image_folder):
    task = ImageFolder(path=str(image_folder), image_size=8, crop=2)

    def sample(seed, **options):
        return next(task.batches("train", 8, seed=seed, **options))

    (plain,) = task.batches("train", 100)
    assert set(plain.targets[:8].tolist()) == {0}
    found, again, other = sample(1), sample(1), sample(2)
    assert set(found.targets.tolist()) == {0, 1}
    assert torch.equal(found.index, again.index)
    assert not torch.equal(found.index, other.index)
    assert torch.equal(found.inputs[0], plain.inputs[0][found.index])  # nothing is augmented
    assert not torch.equal(sample(1, training=True).inputs[0], found.inputs[0])
    every = torch.cat([batch.index for batch in task.batches("train", 8, seed=1)])
    assert sorted(every.tolist()) == list(range(task.size("train")))


def test_the_train_splits_own_mean_is_that_of_all_its_classes():
    class Sorted(Digits):
        def load(self):
            splits, classes = super().load()
            images = np.zeros((20_000, 1, 2, 2), dtype=np.uint8)
            images[10_000:] = 255
            return splits | {name: ImageSplit(images, np.arange(20_000) // 10_000) for name in splits}, classes

    batch = next(Sorted().batches("train", 1))
    assert batch.inputs[0].mean() == pytest.approx(-1, abs=1e-3)


def test_images_are_decoded_once_and_again_when_a_file_changes(image_folder, monkeypatch):
    decoded = []
    real = decode._decode
    monkeypatch.setattr(decode, "_decode", lambda image, *rest: decoded.append(image) or real(image, *rest))

    def load():
        decoded.clear()
        fingerprint = ImageFolder(path=str(image_folder), image_size=8).fingerprint
        return fingerprint, len(decoded)

    first, count = load()
    assert count >= 32
    assert load() == (first, 0)
    file = image_folder / "train" / "cat" / "0.png"
    Image.new("RGB", (12, 10), "red").save(file)
    os.utime(file, ns=(1, 1))
    changed, count = load()
    assert changed != first
    assert count > 0


@pytest.mark.parametrize(("kept", "reason"), [(0, "it is empty"), (40, "it is no image that Pillow knows")])
@pytest.mark.parametrize(("split", "setting"), [("train", "task.path"), ("unlabelled", "task.unlabelled")])
def test_an_image_that_cannot_be_read_is_named(image_folder, tmp_path, kept, reason, split, setting):
    (more := tmp_path / "more").mkdir()
    Image.new("RGB", (12, 10)).save(more / "2.png")
    file = {"train": image_folder / "train" / "cat" / "2.png", "unlabelled": more / "2.png"}[split]
    file.write_bytes(file.read_bytes()[:kept])  # nothing is left, or a picture that ends too early
    task = ImageFolder(path=str(image_folder), image_size=8, unlabelled=str(more))
    with pytest.raises(UserError) as caught:
        _ = task.fingerprint
    place = 4 if split == "train" else 0  # 10 and 11 come before 2
    assert str(caught.value) == (
        f"{setting}: {split} image {place} ({file}) cannot be read: {reason} (repair the file, or take it out)"
    )


def test_an_image_that_ends_too_early_is_refused_with_pillows_reason(image_folder):
    file = image_folder / "train" / "cat" / "0.jpg"
    Image.effect_noise((64, 64), 50).save(file)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=rf"{file}\) cannot be read: image file is truncated"):
        _ = ImageFolder(path=str(image_folder), image_size=8).fingerprint


def test_a_cell_that_holds_no_image_is_named(tmp_path):
    _parquet(tmp_path, "test", [0, 1])
    rows = [{"img": value, "label": n % 2} for n, value in enumerate([{"bytes": b"", "path": None}] * 4)]
    Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UserError, match="task.image_column: train: row 0 of 'img' is no image"):
        _ = _task(tmp_path, validation_share=0.5).fingerprint
    with pytest.raises(UserError, match="row 0 of 'label' is no image: '0'"):
        _ = _task(tmp_path, image_column="label", validation_share=0.5).fingerprint


def _parquet(folder, name, labels, column="img", size=(6, 6)):
    rows = []
    for label in labels:
        buffer = io.BytesIO()
        Image.new("RGB", size, (label * 20 if isinstance(label, int) else 0, 0, 0)).save(buffer, "PNG")
        rows.append({column: {"bytes": buffer.getvalue(), "path": None}, "label": label})
    Dataset.from_list(rows).to_parquet(folder / f"{name}.parquet")


def _task(folder, **options):
    return HubImages(**({"dataset": "some/id", "path": str(folder), "image_column": "img"} | options))


def test_local_parquet_files(tmp_path):
    _parquet(tmp_path, "train", [0, 1, 2] * 10)
    _parquet(tmp_path, "test", [0, 1, 2])
    task = _task(tmp_path)
    assert (task.size("train"), task.size("validation"), task.size("test")) == (27, 3, 3)
    assert task.model_defaults() == {
        "num_classes": 3, "inputs": ["pixel_values"], "in_channels": 3, "input_shape": [3, 6, 6],
    }  # fmt: skip


def test_class_numbers_are_those_of_all_splits(tmp_path):
    _parquet(tmp_path, "train", [0, 1] * 10)
    _parquet(tmp_path, "test", [0, 2])
    assert _task(tmp_path).classes == ["0", "1", "2"]


def test_names_as_labels_become_classes_whatever_was_kept_under_others(tmp_path):
    _parquet(tmp_path, "train", ["dog", "cat", "dog"] * 10)
    _parquet(tmp_path, "test", ["dog", "cat"])
    for options, classes in (({}, ["cat", "dog"]), ({"classes_from": ["dog", "cat"]}, ["dog", "cat"])):
        task = _task(tmp_path, **options)
        assert task.classes == classes
        assert next(task.batches("test", 2)).targets.tolist() == [classes.index("dog"), classes.index("cat")]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, None, None] * 5, "label_column: train has 10 of 20 rows without a label, row 2 first"),
        ([0, 1] * 10 + [2], "task: train has one example of the class '2'"),
        (["a", "b"] * 10 + ["c"], "task: train has one example of the class 'c'.*give a validation split"),
        (
            list(range(20)) * 2,
            "task.validation_share: The test_size = 4 should be greater or equal to the number of cl",
        ),
    ],
)
def test_labels_that_do_not_do_are_one_line(tmp_path, labels, message):
    _parquet(tmp_path, "train", labels)
    _parquet(tmp_path, "test", labels[:2])
    with pytest.raises(UserError, match=message) as caught:
        _ = _task(tmp_path).fingerprint
    assert "\n" not in str(caught.value)


def test_a_hub_data_set_without_the_splits_is_one_line(monkeypatch):
    def hub(*splits):
        table = Table(Dataset.from_dict({"image": [], "text": [], "label": []}), "key")
        for files in (image_files, text_files):
            monkeypatch.setattr(files, "hub_tables", lambda *_: dict.fromkeys(splits, table))

    for task, splits, missing in (
        (HubImages, ["test"], "train"), (HubImages, ["train"], "test or validation"),
        (TextFiles, ["test"], "train"), (TextFiles, ["train", "extra"], "test or validation"),
    ):  # fmt: skip
        hub(*splits)
        with pytest.raises(UserError, match=f"task.dataset: 'some/id' has no {missing} split .it has {splits[0]}"):
            _ = task(dataset="some/id").fingerprint


def test_the_normalization_is_that_of_all_of_train(image_folder, monkeypatch):
    monkeypatch.setattr("optkit.tasks.image_classification.EXAMPLES", 6)
    task = ImageFolder(path=str(image_folder), image_size=8)
    places = np.linspace(0, task.size("train") - 1, 6).astype(int)
    images = task._split("train").images[places] / np.float32(255)
    assert set(task._split("train").labels[places]) == {0, 1}
    np.testing.assert_allclose(task._normalization.mean, images.mean((0, 2, 3)), rtol=1e-5)


def test_a_validation_file_is_used_as_it_is(tmp_path):
    for name, count in (("train", 10), ("validation", 4), ("test", 2)):
        _parquet(tmp_path, name, [0, 1] * count)
    assert _task(tmp_path).size("validation") == 8


def test_declared_classes_and_size_answer_before_anything_is_decoded(tmp_path, monkeypatch):
    _parquet(tmp_path, "train", [0, 1] * 5)
    _parquet(tmp_path, "test", [0, 1])
    task = _task(tmp_path, classes_from=["a", "b"], image_size=6)
    monkeypatch.setattr(decode, "_decode", lambda *a: pytest.fail("decoded"))
    assert task.model_defaults() == {
        "num_classes": 2, "inputs": ["pixel_values"], "in_channels": 3, "input_shape": [3, 6, 6],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("prepare", "options", "message"),
    [
        (["train"], {}, "has no test split"),
        (["train", "test"], {"image_column": "imgs"}, "image_column: train has no column 'imgs'.*did you mean 'img'"),
        (["train", "test"], {"label_column": "labels"}, "did you mean 'label'"),
        (["train", "test"], {"classes_from": ["a"]}, "label 1.*classes_from"),
        (["train", "test"], {"validation_share": 1.0}, "validation_share"),
        (["train", "test"], {"mean": [0.5]}, "std: mean and std go together"),
        (["train", "test"], {"mean": [0.5], "std": [0.5]}, "1 values for images of 3 channels"),
    ],
)
def test_mistakes_are_named(tmp_path, prepare, options, message):
    for name in prepare:
        _parquet(tmp_path, name, [0, 1] * 10)
    with pytest.raises(UserError, match=message) as caught:
        _ = _task(tmp_path, **options).fingerprint
    assert "\n" not in str(caught.value)


def test_no_folder_and_no_network_are_clear_errors(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        _task(tmp_path / "nowhere")
    with pytest.raises(UserError, match="cannot load 'some/id'.*task.path=DIR"):
        _ = HubImages(dataset="some/id").fingerprint


def test_images_of_several_sizes_ask_for_one(tmp_path):
    _parquet(tmp_path, "train", [0, 1] * 10)
    _parquet(tmp_path, "test", [0, 1], size=(9, 9))
    with pytest.raises(UserError, match="image_size"):
        _ = _task(tmp_path).fingerprint
