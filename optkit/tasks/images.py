"""Decoded images, augmentation and loading: everything about an image split but where it comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optkit.core.seeds import seed_sequence
from optkit.core.task import Batch
from optkit.tasks.reading import in_batches

if TYPE_CHECKING:
    from torch import Tensor


class Joined:
    """Two arrays, one behind the other along the first axis, without a copy of either."""

    def __init__(self, first: Images, second: Images):
        self.first, self.second = first, second
        self.shape: tuple[int, ...] = (len(first) + len(second), *first.shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        places = np.arange(len(self))[index]
        behind = places >= len(self.first)
        found = np.empty((len(places), *self.shape[1:]), dtype=np.uint8)
        found[~behind] = self.first[places[~behind]]
        found[behind] = self.second[places[behind] - len(self.first)]
        return found


Images = NDArray[np.uint8] | Joined


@dataclass(frozen=True)
class ImageSplit:
    """Decoded images ``(N, C, H, W)`` uint8, possibly a memory map, and labels ``(N,)`` int64."""

    images: Images
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: NDArray[np.int64]) -> ImageSplit:
        return ImageSplit(self.images[index], self.labels[index])

    def digest(self) -> str:
        """Hash of shape, pixels and labels."""
        digest = hashlib.blake2b(str(self.images.shape).encode(), digest_size=16)
        for start in range(0, len(self), 4096):
            digest.update(np.ascontiguousarray(self.images[start : start + 4096]).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()

    def hashes(self) -> list[bytes]:
        """A hash of each image."""
        images = (self.images[n : n + 1].tobytes() for n in range(len(self)))
        return [hashlib.blake2b(image, digest_size=16).digest() for image in images]

    def joined(self, other: ImageSplit) -> ImageSplit:
        """This split, and the other behind it."""
        return ImageSplit(Joined(self.images, other.images), np.concatenate([self.labels, other.labels]))


@dataclass(frozen=True)
class Augmentation:
    """Random crop after padding with ``crop`` black pixels on each side, and a horizontal flip."""

    crop: int = 0
    flip: bool = False

    def __call__(self, images: Tensor, generator: np.random.Generator) -> Tensor:
        """Augments ``(N, C, H, W)`` of any dtype, each image on its own."""
        import torch
        from torch.nn import functional as F

        n, _, height, width = images.shape
        if self.crop:
            padded = F.pad(images, [self.crop] * 4)
            top, left = torch.from_numpy(generator.integers(0, 2 * self.crop + 1, (2, n)))
            rows = (top[:, None] + torch.arange(height))[:, None, :, None]
            columns = (left[:, None] + torch.arange(width))[:, None, None, :]
            channels = torch.arange(images.shape[1])[None, :, None, None]
            images = padded[torch.arange(n)[:, None, None, None], channels, rows, columns]
        if self.flip:
            flipped = torch.from_numpy(generator.random(n) < 0.5)
            images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
        return images


@dataclass(frozen=True)
class Normalization:
    """Per-channel mean and standard deviation of pixel values in [0, 1]."""

    mean: Sequence[float]
    std: Sequence[float]

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 ``(N, C, H, W)`` to normalized float32."""
        import torch

        mean = torch.tensor(self.mean)[None, :, None, None] * 255
        std = torch.tensor(self.std)[None, :, None, None] * 255
        return (images.float() - mean) / std


class ImageBatches:
    """Images of a split, normalized and perhaps augmented, a batch at a time."""

    def __init__(self, split: ImageSplit, normalization: Normalization, augmentation: Augmentation | None, seed: int):
        self.split, self.normalization, self.augmentation = split, normalization, augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, index: list[int]) -> Batch:
        import torch

        images = torch.from_numpy(self.split.images[index])
        if self.augmentation is not None:
            # seeded by the first example and the epoch, so that a batch is the same whichever worker makes it
            generator = np.random.default_rng(seed_sequence(self.seed, "augmentation", index[0]))
            images = self.augmentation(images, generator)
        targets = torch.from_numpy(self.split.labels[index])
        return Batch((self.normalization(images),), targets, torch.tensor(index))


def image_batches(
    split: ImageSplit,
    batch_size: int,
    normalization: Normalization,
    augmentation: Augmentation | None = None,
    seed: int | None = None,
) -> Iterator[Batch]:
    """Batches of a split, in order without a seed; the order and the augmentation depend on it alone."""
    return in_batches(ImageBatches(split, normalization, augmentation, seed or 0), batch_size, seed)
