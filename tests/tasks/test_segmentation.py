import numpy as np
import pytest
import torch
from PIL import Image

from optkit.core.errors import UserError
from optkit.core.metric import observed
from optkit.core.task import CLASS_MAPS, NO_LABEL, Task
from optkit.metrics.segmentation import MeanIoU
from optkit.tasks import Segmentation

NAMES = ["background", "disc", "square", "triangle"]


def first_batch(task, split="test", count=4, **options):
    return next(iter(task.batches(split, count, **options)))


def test_pictures_and_masks_come_as_they_are_in_the_files(scenes):
    task: Task = Segmentation(path=str(scenes), mean=[0, 0, 0], std=[1, 1, 1], workers=0)
    batch = first_batch(task)
    picture = np.array(Image.open(scenes / "test/images/0002.png")).transpose(2, 0, 1)
    mask = np.array(Image.open(scenes / "test/masks/0002.png")).astype(int)
    torch.testing.assert_close(batch.inputs[0][2], torch.from_numpy(picture / np.float32(255)))
    assert np.array_equal(batch.targets[2].numpy(), np.where(mask == 255, NO_LABEL, mask))
    assert task.output_kind == CLASS_MAPS
    assert task.class_names == ["0", "1", "2", "3"]
    assert (task.size("train"), task.size("validation"), task.size("test")) == (24, 8, 10)
    assert task.model_defaults()["num_classes"] == 4


def test_the_metric_leaves_out_what_is_ignored(scenes):
    task = Segmentation(path=str(scenes), classes_from=NAMES, workers=0)
    assert task.metrics == (MeanIoU(4, NO_LABEL),)
    batch = first_batch(task)
    right = torch.nn.functional.one_hot(batch.targets.clamp(min=0), 4).movedim(-1, 1).float()
    wrong_where_ignored = torch.where((batch.targets == NO_LABEL)[:, None], right.roll(1, 1), right)
    table = observed(task.metrics[0], wrong_where_ignored, batch)
    assert task.metrics[0].value(table) == 1
    counted = (batch.targets != NO_LABEL).sum()
    logits = torch.randn(4, 4, 48, 48)
    by_hand = -logits.log_softmax(1).gather(1, batch.targets.clamp(min=0)[:, None])[:, 0]
    expected = (by_hand * (batch.targets != NO_LABEL)).sum() / counted
    torch.testing.assert_close(task.loss(logits, batch), expected)


def test_masks_are_stretched_with_their_pictures_and_hold_no_new_class(scenes):
    task = Segmentation(path=str(scenes), image_size=[24, 96], workers=0)
    batch = first_batch(task)
    assert batch.inputs[0].shape == (4, 3, 24, 96)
    mask = np.array(Image.open(scenes / "test/masks/0000.png").resize((96, 24), Image.Resampling.NEAREST)).astype(int)
    assert np.array_equal(batch.targets[0].numpy(), np.where(mask == 255, NO_LABEL, mask))


def test_palettes_and_16_bits_hold_numbers(scenes):
    plain = first_batch(Segmentation(path=str(scenes), workers=0)).targets
    for n, path in enumerate(sorted((scenes / "test/masks").iterdir())):
        mask = Image.open(path)
        if n % 2:
            palette = Image.fromarray(np.array(mask))
            palette.putpalette([3 * n % 256 for n in range(768)])
            palette.save(path)
        else:
            Image.fromarray(np.array(mask).astype(np.uint16)).save(path)
    assert torch.equal(first_batch(Segmentation(path=str(scenes), workers=0)).targets, plain)


def test_mask_values_name_the_numbers_of_classes(scenes):
    for path in scenes.glob("*/masks/*.png"):
        mask = np.array(Image.open(path))
        Image.fromarray(np.where(mask == 0, 0, 255).astype(np.uint8)).save(path)
    with pytest.raises(UserError, match=r"masks hold 0 and 255 alone, and 255 is task\.ignore .*mask_values=\[0,255\]"):
        first_batch(Segmentation(path=str(scenes)))
    task = Segmentation(path=str(scenes), mask_values=[0, 255], ignore=None, workers=0)
    assert task.class_names == ["0", "255"]
    assert set(first_batch(task).targets.unique().tolist()) == {0, 1}


def test_training_moves_picture_and_mask_alike(scenes):
    task = Segmentation(path=str(scenes), crop=6, flip=True, mean=[0, 0, 0], std=[1, 1, 1], workers=0)
    plain = {
        int(n): (x, y)
        for b in task.batches("train", 8)
        for n, x, y in zip(b.index, b.inputs[0], b.targets, strict=True)
    }
    moved = 0
    for batch in task.batches("train", 8, training=True, seed=3):
        for index, picture, mask in zip(batch.index, batch.inputs[0], batch.targets, strict=True):
            image, classes = plain[int(index)]
            pad, wide = torch.nn.functional.pad, torch.nn.functional.pad(image, [6] * 4)
            widened = pad(classes, [6] * 4, value=NO_LABEL)
            found = [
                (i, j, f)
                for i in range(13)
                for j in range(13)
                for f in (False, True)
                if torch.equal(picture.flip(-1) if f else picture, wide[:, i : i + 48, j : j + 48])
            ]
            (top, left, flipped), *_ = found
            assert torch.equal(mask.flip(-1) if flipped else mask, widened[top : top + 48, left : left + 48])
            moved += not torch.equal(picture, image)
    assert moved > 12
    again = [b.targets for b in task.batches("train", 8, training=True, seed=3)]
    assert all(
        torch.equal(a, b.targets) for a, b in zip(again, task.batches("train", 8, training=True, seed=3), strict=True)
    )


def test_validation_is_cut_from_train_and_other_names_of_it_are_known(scenes):
    (scenes / "validation").rename(scenes / "val")
    assert Segmentation(path=str(scenes)).size("validation") == 8
    (scenes / "val").rename(scenes / "other")
    task = Segmentation(path=str(scenes), validation_share=0.25)
    assert (task.size("train"), task.size("validation")) == (18, 6)


def test_the_fingerprint_sees_files_and_settings(scenes):
    def found(**options):
        return Segmentation(path=str(scenes), **options).fingerprint

    first = found()
    assert found() == first
    others = [
        found(image_size=32),
        found(flip=False),
        found(mean=[0, 0, 0], std=[1, 1, 1]),
        found(ignore=None, mask_values=[0, 1, 2, 3, 255]),
    ]
    mask = Image.open(scenes / "train/masks/0000.png").copy()
    mask.putpixel((0, 0), 1)
    mask.save(scenes / "train/masks/0000.png")
    assert len({first, found(), *others}) == 6


def test_what_is_in_the_files_counts_and_not_where_they_are(scenes, tmp_path):
    first = Segmentation(path=str(scenes)).fingerprint
    scenes.rename(tmp_path / "moved")
    assert Segmentation(path=str(tmp_path / "moved")).fingerprint == first


def _mask(path, change):
    mask = Image.open(path)
    change(mask).save(path)


def _put(value):
    def change(mask):
        mask = mask.copy()
        mask.putpixel((3, 3), value)
        return mask

    return change


BAD = {
    "a class named twice": (lambda s: None, {"classes_from": ["a", "b", "b", "c"]}, "classes_from: it has 'b' twice"),
    "no number to ignore": (lambda s: None, {"ignore": "x"}, "ignore: 'x' is not a whole number"),
    "a deviation of 0": (lambda s: None, {"mean": [0, 0, 0], "std": [1, 1, 0]}, "std: 0 is not a number above 0"),
    "a mask of another size": (
        lambda s: _mask(s / "train/masks/0003.png", lambda m: m.resize((40, 48))),
        {},
        r"task\.path: train: the mask .*train/masks/0003\.png is 40x48 pixels, and its image 48x48",
    ),
    "a class that there is not": (
        lambda s: _mask(s / "test/masks/0001.png", _put(9)),
        {"classes_from": NAMES},
        r"test: the mask .*0001\.png holds 9, which is no class \(known: 0, 1, 2, 3, 255",
    ),
    "a class that train has not": (
        lambda s: _mask(s / "test/masks/0001.png", _put(9)),
        {},
        r"test: the mask .*0001\.png holds 9, which is no class",
    ),
    "a colour mask": (
        lambda s: _mask(s / "train/masks/0000.png", lambda m: m.convert("RGB")),
        {},
        r"task\.masks: the mask .*0000\.png holds colours \(RGB\), not one class number a pixel",
    ),
    "a mask that is cut short": (
        lambda s: (s / "train/masks/0000.png").write_bytes((s / "train/masks/0000.png").read_bytes()[:60]),
        {},
        r"task\.path: .*train/masks/0000\.png cannot be read",
    ),
    "an image that is none": (
        lambda s: (s / "validation/images/0000.png").write_text("no image"),
        {},
        r"task\.path: .*validation/images/0000\.png cannot be read: it is no image that Pillow knows",
    ),
    "an image without a mask": (
        lambda s: (s / "train/masks/0007.png").unlink(),
        {},
        r"task\.path: .*train/images/0007\.png has no mask in .*train/masks",
    ),
    "a mask without an image": (
        lambda s: (s / "train/images/0007.png").unlink(),
        {},
        r"task\.path: .*train/masks/0007\.png has no image in .*train/images",
    ),
    "two images of one name": (
        lambda s: Image.open(s / "train/images/0007.png").save(s / "train/images/0007.bmp"),
        {},
        r"task\.images: .*0007\.bmp and 0007\.png have one name",
    ),
    "a JPEG mask": (
        lambda s: (
            Image.open(s / "train/masks/0007.png").save(s / "train/masks/0007.jpg"),
            (s / "train/masks/0007.png").unlink(),
        ),
        {},
        r"task\.masks: .*0007\.jpg is a JPEG file, which changes the numbers of a mask",
    ),
    "pictures of several sizes": (
        lambda s: [
            Image.open(s / f"test/{kind}/0001.png").resize((40, 40), 0).save(s / f"test/{kind}/0001.png")
            for kind in ("images", "masks")
        ],
        {},
        r"task\.image_size: test image 1 is 40x40 pixels, the first 48x48 \(set task\.image_size\)",
    ),
    "more names than values": (
        lambda s: None,
        {"classes_from": NAMES, "mask_values": [0, 1]},
        r"task\.mask_values: 2 values for 4 class names",
    ),
    "a class that is ignored": (lambda s: None, {"mask_values": [0, 1, 2, 3, 255]}, r"task\.ignore: 255 is a class"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_told_of_before_anything_is_trained(scenes, case):
    change, options, message = BAD[case]
    change(scenes)
    with pytest.raises(UserError, match=message):
        Segmentation(path=str(scenes), **options).model_defaults()


WRONG = {
    "no folder": ({"path": "/not/there"}, r"path: no folder /not/there"),
    "no path": ({"path": None}, r"path: missing \(set task\.path=DIR\)"),
    "no test": ({"images": "{split}/pictures"}, r"images: .*train/pictures is not there"),
    "no split in the name": ({"masks": "masks"}, r"masks: 'masks' names no split"),
    "a size": ({"image_size": 4}, r"image_size: 4 is no size of a picture \(8 to 4096, or \[height, width\]\)"),
    "a size of three": ({"image_size": [32, 32, 3]}, r"image_size: \[32, 32, 3\] is no size"),
    "a mean alone": ({"mean": [0, 0, 0]}, r"std: mean and std go together"),
    "a mean of one channel": (
        {"mean": [0], "std": [1]},
        r"mean: \[0\] is not one number for each of red, green and blue",
    ),
    "a metric": ({"metrics": ["mean_iuo"]}, r"no metric 'mean_iuo' \(did you mean 'mean_iou'"),
    "a loss": ({"loss": "cross_entropie"}, r"loss: no loss 'cross_entropie'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_are_told_of_at_once(scenes, case):
    options, message = WRONG[case]
    with pytest.raises(UserError, match=message):
        Segmentation(**{"path": str(scenes)} | options)


def test_a_model_of_other_classes_or_another_size_does_not_fit(scenes):
    task = Segmentation(path=str(scenes), workers=0)
    assert task.mismatch(torch.zeros(2, 4, 48, 48), 2) is None
    assert "it gives [2, 3, 48, 48] for 2 examples, and not [2, 4, 48, 48]" in task.mismatch(
        torch.zeros(2, 3, 48, 48), 2
    )
    assert "it gives [2, 4, 24, 24]" in task.mismatch(torch.zeros(2, 4, 24, 24), 2)
    assert "it gives [2, 4]" in task.mismatch(torch.zeros(2, 4), 2)
    assert "it gives dict" in task.mismatch({}, 2)
