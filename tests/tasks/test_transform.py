"""Augmentations of one's own."""

import pytest
import torch

from optkit.core.errors import UserError
from optkit.tasks import Digits

HERE = f"{__name__}."


def inverted(images):
    return 255 - images


def drawn(images, generator):
    return images.roll(int(generator.integers(8)), -1)


def noisy(images):
    return (images + torch.randint(0, 5, images.shape, dtype=torch.uint8)).clamp(0, 255)


def smaller(images):
    return images[..., 1:]


def task(name):
    return Digits(image_size=8, crop=0, limit=64, transform=None if name is None else HERE + name)


def first(task, training, seed=0):
    return next(task.batches("train", 8, training=training, seed=seed)).inputs[0]


def test_it_changes_training_images_alone():
    plain, own = task(None), task("inverted")
    assert torch.equal(first(plain, False), first(own, False))
    assert not torch.equal(first(plain, True), first(own, True))
    assert plain.fingerprint != own.fingerprint


@pytest.mark.parametrize("name", ["drawn", "noisy"])
def test_the_same_seed_gives_the_same_images(name):
    state = torch.random.get_rng_state()
    assert torch.equal(first(task(name), True), first(task(name), True))
    assert not torch.equal(first(task(name), True), first(task(name), True, seed=1))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_images_of_another_shape_are_refused_before_any_training():
    with pytest.raises(UserError, match=r"task\.transform: .*it must keep the shape and the type"):
        _ = task("smaller").fingerprint
