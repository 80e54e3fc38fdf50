import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from optkit.tasks import Digits
from optkit.tasks.images import Augmentation, ImageSplit, Normalization, image_batches


def test_every_augmented_image_is_a_crop_of_the_padded_one_or_its_mirror():
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.integers(1, 255, (16, 2, 5, 4)).astype(np.uint8))
    out = Augmentation(crop=2, flip=True)(images, np.random.default_rng(0))
    for image, augmented in zip(images, out, strict=True):
        padded = torch.zeros(2, 9, 8, dtype=torch.uint8)
        padded[:, 2:7, 2:6] = image
        crops = [padded[:, top : top + 5, left : left + 4] for top in range(5) for left in range(5)]
        assert any(torch.equal(augmented, c) or torch.equal(augmented, c.flip(-1)) for c in crops)
    assert not torch.equal(out, images)


def test_no_augmentation_leaves_images_alone():
    images = torch.arange(24, dtype=torch.uint8).view(2, 1, 3, 4)
    assert torch.equal(Augmentation()(images, np.random.default_rng(0)), images)


def test_normalization_is_the_textbook_formula():
    images = torch.tensor([[[[0, 255]], [[51, 102]]]], dtype=torch.uint8)
    found = Normalization((0.5, 0.2), (0.5, 0.1))(images)
    torch.testing.assert_close(found, torch.tensor([[[[-1.0, 1.0]], [[0.0, 2.0]]]]))


@pytest.fixture
def split():
    images = np.arange(10 * 3 * 4 * 4, dtype=np.int64).reshape(10, 3, 4, 4) % 256
    return ImageSplit(images.astype(np.uint8), np.arange(10))


def test_batches_cover_the_split_once_and_in_order(split):
    norm = Normalization((0, 0, 0), (1, 1, 1))
    batches = list(image_batches(split, 4, norm))
    assert [len(b) for b in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([b.index for b in batches]), torch.arange(10))
    pixels = torch.from_numpy(split.images).float() / 255
    torch.testing.assert_close(torch.cat([b.inputs[0] for b in batches]), pixels)


def test_training_batches_depend_on_the_seed_alone(split):
    norm = Normalization((0, 0, 0), (1, 1, 1))

    def draw(seed):
        batches = list(image_batches(split, 4, norm, Augmentation(1, True), seed))
        return torch.cat([b.index for b in batches]), torch.cat([b.inputs[0] for b in batches])

    (order, pixels), (order_again, pixels_again), (other, _) = draw(1), draw(1), draw(2)
    assert torch.equal(order, order_again)
    assert torch.equal(pixels, pixels_again)
    assert not torch.equal(order, other)
    assert sorted(order.tolist()) == list(range(10))


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_part_of_a_batch_is_read_alone_and_is_as_in_the_whole(split, rank):
    class Read(np.ndarray):
        def __getitem__(self, index):
            read.extend(index)
            return np.asarray(self)[index]

    def part(count):
        return slice(rank * count // 3, (rank + 1) * count // 3)

    norm, augmentation, read = Normalization((0, 0, 0), (1, 1, 1)), Augmentation(1, True), []
    spied = ImageSplit(split.images.view(Read), split.labels)
    parts = list(image_batches(spied, 4, norm, augmentation, 5, part))
    for found, whole in zip(parts, image_batches(split, 4, norm, augmentation, 5), strict=True):
        expected = whole.subset(part(len(whole)))
        for ours, theirs in ((found.inputs[0], expected.inputs[0]), (found.targets, expected.targets)):
            assert torch.equal(ours, theirs)
        assert torch.equal(found.index, expected.index)
    assert read == torch.cat([batch.index for batch in parts]).tolist()


def test_an_own_transform_and_own_batches_are_given_whole(digits):
    class Mirrored(Digits):
        def batches(self, split, batch_size, *, training=False, seed=None):
            for batch in super().batches(split, batch_size, training=training, seed=seed):
                yield replace(batch, inputs=(batch.inputs[0].flip(-1),))

    rows = {"image_size": 8, "limit": 10}
    for task in (Mirrored(**rows), Digits(transform="tests.tasks.test_images.drawn", **rows)):
        whole = list(task.batches("train", 4, training=True, seed=1))
        parts = list(task.batch_parts("train", 4, lambda count: slice(1, 2), training=True, seed=1))
        for found, batch in zip(parts, whole, strict=True):
            assert torch.equal(found.inputs[0], batch.inputs[0][1:2])


def drawn(images):
    """Noise that is drawn for a whole batch."""
    return images + torch.randint(0, 9, images.shape, dtype=torch.uint8)


def test_digits_that_are_kept_need_no_scikit_learn(digits, monkeypatch):
    assert [digits.size(split) for split in ("train", "validation", "test")] == [256, 180, 256]
    for name in ("sklearn.datasets", "sklearn.model_selection"):
        monkeypatch.setitem(sys.modules, name, None)
    assert Digits(image_size=8, crop=1, limit=256).fingerprint == digits.fingerprint


def test_the_digest_sees_one_pixel_and_one_label(split):
    pixels = split.images.copy()
    pixels[9, 2, 3, 3] ^= 1
    labels = split.labels.copy()
    labels[0] = 5
    digests = {split.digest(), ImageSplit(pixels, split.labels).digest(), ImageSplit(split.images, labels).digest()}
    assert len(digests) == 3
