"""Image classification: the Task that every image data set becomes."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from optkit.core.errors import UserError
from optkit.core.task import Batch
from optkit.tasks.images import Augmentation, ImageSplit, Normalization, image_batches

SPLITS = ("train", "validation", "test")


@dataclass(kw_only=True)
class ImageClassification(ABC):
    """An image data set with labels.

    Attributes:
        crop: pixels of padding for the random crop in training; 0 for none.
        flip: whether training flips images left to right.
        mean, std: what inputs are normalized with, per channel of [0, 1] pixels: those the checkpoint was trained
            with. None takes the train split's own.
        limit: at most so many examples a split (a smoke run); None for all.
    """

    crop: int = 0
    flip: bool = False
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            missing = "mean" if self.mean is None else "std"
            raise UserError("mean and std go together", key=missing, fix="give both, or neither")
        if self.crop < 0:
            raise UserError(f"{self.crop} is below 0", key="crop", value=self.crop)
        if self.limit is not None and self.limit < 1:
            raise UserError(f"{self.limit} is below 1", key="limit", value=self.limit)

    @abstractmethod
    def load(self) -> tuple[dict[str, ImageSplit], list[str]]:
        """The decoded splits and the class names. Called once."""

    @cached_property
    def _loaded(self) -> tuple[dict[str, ImageSplit], list[str]]:
        splits, classes = self.load()
        for name in SPLITS:
            if name not in splits or not len(splits[name]):
                raise UserError(
                    f"the data set has no {name} split", key="task", fix="a recipe needs train and test data"
                )
        shapes = {name: split.images.shape[1:] for name, split in splits.items()}
        if len(set(shapes.values())) > 1:
            raise UserError(f"images differ in size: {shapes}", key="task.image_size", fix="set task.image_size")
        highest = max(int(split.labels.max()) for split in splits.values())
        if highest >= len(classes):
            message = f"label {highest}, but only {len(classes)} class names"
            raise UserError(message, key="task", fix="correct classes_from")
        if self.limit is not None:
            splits = {name: split.subset(_spread(len(split), self.limit)) for name, split in splits.items()}
        return splits, classes

    @cached_property
    def _normalization(self) -> Normalization:
        if self.mean is not None and self.std is not None:
            channels = self._split("train").images.shape[1]
            for name, values in (("mean", self.mean), ("std", self.std)):
                if len(values) != channels:
                    message = f"{len(values)} values for images of {channels} channels"
                    raise UserError(message, key=f"task.{name}", value=values)
            return Normalization(tuple(self.mean), tuple(self.std))
        images = self._split("train").images[:10_000] / np.float32(255)
        return Normalization(tuple(images.mean((0, 2, 3)).tolist()), tuple((images.std((0, 2, 3)) + 1e-6).tolist()))

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name in SPLITS:
            digest.update(self._split(name).digest().encode())
        norm = self._normalization
        digest.update(repr((list(norm.mean), list(norm.std), self.crop, self.flip)).encode())
        return digest.hexdigest()[:16]

    @property
    def classes(self) -> list[str]:
        """Class names, in the order of their numbers."""
        return self._loaded[1]

    def _split(self, name: str) -> ImageSplit:
        return self._loaded[0][name]

    def declared(self) -> tuple[int, list[int]] | None:
        """Number of classes and image shape, where they are known before anything is decoded."""
        return None

    def model_defaults(self) -> dict[str, Any]:
        classes, shape = self.declared() or (len(self.classes), list(self._split("train").images.shape[1:]))
        return {"num_classes": classes, "in_channels": shape[0], "input_shape": shape}

    def size(self, split: str) -> int:
        return len(self._split(split))

    def batches(self, split: str, batch_size: int, *, training: bool = False, seed: int = 0) -> Iterator[Batch]:
        augmentation = Augmentation(self.crop, self.flip) if training else None
        return image_batches(self._split(split), batch_size, self._normalization, augmentation, training, seed)

    def forward(self, module: nn.Module, batch: Batch) -> Tensor:
        return module(*batch.inputs)

    def loss(self, logits: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        return F.cross_entropy(logits, batch.targets, label_smoothing=label_smoothing)

    def correct(self, logits: Tensor, batch: Batch) -> Tensor:
        return logits.argmax(-1) == batch.targets

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        split = self._split("train")
        index = np.arange(batch_size) % len(split)
        return (self._normalization(torch.from_numpy(split.images[index])),)

    def metric(self, correct: NDArray[np.bool_]) -> float:
        from optkit.tasks.metrics import accuracy

        ones = np.ones(len(correct), dtype=np.int64)
        return accuracy().compute(predictions=correct.astype(np.int64), references=ones)["accuracy"]


def _spread(total: int, limit: int) -> NDArray[np.int64]:
    """Up to ``limit`` places spread evenly over ``total``."""
    return np.unique(np.linspace(0, total - 1, min(limit, total)).astype(np.int64))


def stratified_split(labels: NDArray[np.int64], share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices ``(rest, held out)`` with every class held out in the same share; both in ascending order."""
    from sklearn.model_selection import train_test_split

    rest, held = train_test_split(np.arange(len(labels)), test_size=share, stratify=labels, random_state=seed)
    return np.sort(rest), np.sort(held)
