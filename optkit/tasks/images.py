"""Decoded images, augmentation and loading: everything about an image split but where it comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from optkit.core.errors import UserError, first_line
from optkit.core.instantiate import locate, parameters
from optkit.core.seeds import seed_sequence
from optkit.core.task import Batch
from optkit.tasks.reading import in_batches

if TYPE_CHECKING:
    from torch import Tensor

DIGESTED = 64  # images at once
Part = Callable[[int], slice]  # of a batch of so many images


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


class Decoding(Protocol):
    """Images that are decoded whenever they are asked for."""

    shape: tuple[int, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> NDArray[np.uint8]: ...

    def subset(self, index: NDArray[np.int64]) -> Self:
        """Some of them, not decoded."""
        ...


class Sources(Protocol):
    """Files, or cells of a table, of which a hash of their content would take long."""

    def subset(self, index: NDArray[np.int64]) -> Self: ...

    def digest(self) -> str:
        """A hash of their names, sizes and times."""
        ...

    def hashes(self) -> list[bytes]:
        """What tells one from another."""
        ...


Images = NDArray[np.uint8] | Joined | Decoding


@dataclass(frozen=True)
class ImageSplit:
    """Images and their labels.

    Attributes:
        images: ``(N, C, H, W)`` uint8, decoded, possibly a memory map, or decoded whenever they are asked for.
        labels: ``(N,)`` int64.
        sources: what the images are read from, if that stands for them in the fingerprint; else their pixels do.
        workers: processes that read batches.
    """

    images: Images
    labels: NDArray[np.int64]
    sources: Sources | None = None
    workers: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: NDArray[np.int64]) -> ImageSplit:
        lazy = not isinstance(self.images, (np.ndarray, Joined))
        images = self.images.subset(index) if lazy else self.images[index]  # type: ignore[union-attr]
        sources = None if self.sources is None else self.sources.subset(index)
        return replace(self, images=images, labels=self.labels[index], sources=sources)

    def digest(self) -> str:
        """Hash of shape, pixels and labels, or of shape, sources and labels."""
        digest = hashlib.blake2b(str(self.images.shape).encode(), digest_size=16)
        if self.sources is not None:
            digest.update(self.sources.digest().encode())
        else:
            for batch in in_batches(_Pixels(self), DIGESTED, None, self.workers):
                digest.update(batch.inputs[0].numpy().data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()

    def hashes(self) -> list[bytes]:
        """A hash of each image, or of what it is read from."""
        if self.sources is not None:
            return self.sources.hashes()
        images = (self.images[n : n + 1].tobytes() for n in range(len(self)))
        return [hashlib.blake2b(image, digest_size=16).digest() for image in images]

    def joined(self, other: ImageSplit) -> ImageSplit:
        """This split, and the other behind it."""
        labels = np.concatenate([self.labels, other.labels])
        return ImageSplit(Joined(self.images, other.images), labels, workers=max(self.workers, other.workers))


@dataclass(frozen=True)
class _Pixels:
    """Images of a split as they are, a batch at a time."""

    split: ImageSplit

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, index: list[int]) -> Batch:
        import torch

        return Batch((torch.from_numpy(self.split.images[index]),), None, torch.tensor(index))


@dataclass(frozen=True)
class Augmentation:
    """Random crop after padding with ``crop`` black pixels on each side, a horizontal flip, and one's own function.

    Attributes:
        crop, flip: whether, and by how much.
        transform: dotted path of ``f(images, generator)``, or of ``f(images)`` that draws from torch's generator, which
            is seeded for each batch. It gets uint8 ``(N, C, H, W)`` and gives the same shape and type.
    """

    crop: int = 0
    flip: bool = False
    transform: str | None = None

    def __call__(
        self, images: Tensor, generator: np.random.Generator, of: int | None = None, part: slice = slice(None)
    ) -> Tensor:
        """Augments ``(N, C, H, W)`` of any dtype, each image on its own.

        Args:
            images: all of a batch, or a part of it.
            generator: of the batch.
            of: how many images the batch has; None for as many as there are here.
            part: which of them these are. One's own function sees whole batches only.
        """
        import torch
        from torch.nn import functional as F

        n, _, height, width = images.shape
        of = n if of is None else of
        if self.crop:
            padded = F.pad(images, [self.crop] * 4)
            top, left = torch.from_numpy(generator.integers(0, 2 * self.crop + 1, (2, of))[:, part])
            rows = (top[:, None] + torch.arange(height))[:, None, :, None]
            columns = (left[:, None] + torch.arange(width))[:, None, None, :]
            channels = torch.arange(images.shape[1])[None, :, None, None]
            images = padded[torch.arange(n)[:, None, None, None], channels, rows, columns]
        if self.flip:
            flipped = torch.from_numpy(generator.random(of)[part] < 0.5)
            images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
        return images if self.transform is None else self._transformed(self.transform, images, generator)

    @staticmethod
    def _transformed(path: str, images: Tensor, generator: np.random.Generator) -> Tensor:
        import torch

        key = "task.transform"
        own = locate(path, key)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(generator.integers(2**63)))
            try:
                found = own(images, generator) if "generator" in parameters(own) else own(images)
            except Exception as error:
                message = f"'{path}' fails on images {list(images.shape)}: {type(error).__name__}: {first_line(error)}"
                fix = "it is called as transform(images), or transform(images, generator)"
                raise UserError(message, key=key, value=path, fix=fix) from error
        if not isinstance(found, torch.Tensor) or (found.shape, found.dtype) != (images.shape, images.dtype):
            what = f"{found.dtype} {list(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
            message = f"'{path}' makes {what} of {images.dtype} {list(images.shape)}"
            raise UserError(message, key=key, value=path, fix="it must keep the shape and the type")
        return found


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
    """Images of a split, perhaps augmented, a batch at a time, or a part of each batch."""

    def __init__(self, split: ImageSplit, augmentation: Augmentation | None, seed: int, part: Part | None = None):
        self.split, self.augmentation, self.seed, self.part = split, augmentation, seed, part

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, index: list[int]) -> Batch:
        import torch

        part = slice(None) if self.part is None else self.part(len(index))
        read = index[part]
        images = torch.from_numpy(self.split.images[read])
        if self.augmentation is not None:
            # seeded by the first example and the epoch, so that a batch is the same whichever worker makes it
            generator = np.random.default_rng(seed_sequence(self.seed, "augmentation", index[0]))
            images = self.augmentation(images, generator, len(index), part)
        targets = torch.from_numpy(self.split.labels[read])
        return Batch((images,), targets, torch.tensor(read))


def image_batches(
    split: ImageSplit,
    batch_size: int,
    normalization: Normalization,
    augmentation: Augmentation | None = None,
    seed: int | None = None,
    part: Part | None = None,
) -> Iterator[Batch]:
    """Batches of a split, in order without a seed; the order and the augmentation depend on it alone.

    With a ``part`` only these places of each batch are read.
    """
    found = in_batches(ImageBatches(split, augmentation, seed or 0, part), batch_size, seed, split.workers)
    # normalized here: bytes travel from a worker in a quarter of the memory
    return (replace(batch, inputs=(normalization(batch.inputs[0]),)) for batch in found)
