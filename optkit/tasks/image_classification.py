"""Image classification: the task of every image data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optkit.core.checks import check_count
from optkit.core.errors import UserError
from optkit.core.instantiate import NAMED, own_part
from optkit.core.task import Batch
from optkit.tasks.classification import Classification, write_labels
from optkit.tasks.given import spread
from optkit.tasks.images import Augmentation, ImageSplit, Normalization, Part, image_batches
from optkit.tasks.reading import order_seed

if TYPE_CHECKING:
    from torch import Tensor

COLORS = {1: "L", 3: "RGB"}  # Pillow's names, by the number of channels
EXAMPLES = 10_000  # of train, from which mean and deviation of pixels are
EXAMPLES_OF_MANY = 500  # where the images are too many to be hashed


@dataclass(kw_only=True)
class ImageClassification(Classification[ImageSplit]):
    """An image data set with labels.

    Attributes:
        crop: pixels of padding for the random crop in training; 0 for none.
        flip: whether training flips images left to right.
        mean, std: what inputs are normalized with, per channel of [0, 1] pixels: those the checkpoint was trained
            with. None takes the train split's own.
        transform: dotted path of your own augmentation of training images, after `crop` and `flip`:
            ``f(images, generator)``, or ``f(images)`` that draws from torch's generator. It gets uint8
            ``(N, C, H, W)`` and gives the same shape and type. The generator is numpy's.
    """

    crop: int = 0
    flip: bool = False
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    transform: str | None = field(default=None, metadata=NAMED)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.mean is None) != (self.std is None):
            missing = "mean" if self.mean is None else "std"
            raise UserError("mean and std go together", key=missing, fix="give both, or neither")
        check_count("crop", self.crop, least=0)
        if self.transform is not None:
            own_part(self.transform, (), "transform")

    def check(self, splits: dict[str, ImageSplit], classes: list[str]) -> None:
        super().check(splits, classes)
        shapes = {name: split.images.shape[1:] for name, split in splits.items()}
        if len(set(shapes.values())) > 1:
            raise UserError(f"images differ in size: {shapes}", key="task.image_size", fix="set task.image_size")
        if self.transform is not None:  # tried before any training
            import torch

            images = torch.from_numpy(np.asarray(splits["train"].images[:2]))
            Augmentation(transform=self.transform)(images, np.random.default_rng(0))

    @cached_property
    def _normalization(self) -> Normalization:
        if self.mean is not None and self.std is not None:
            channels = self._split("train").images.shape[1]
            for name, values in (("mean", self.mean), ("std", self.std)):
                if len(values) != channels:
                    message = f"{len(values)} values for images of {channels} channels"
                    raise UserError(message, key=f"task.{name}", value=values)
            return Normalization(tuple(self.mean), tuple(self.std))
        train = self._split("train")
        # spread, as files may be listed class by class
        examples = EXAMPLES if train.sources is None else EXAMPLES_OF_MANY
        images = train.images[spread(len(train), examples)] / np.float32(255)
        return Normalization(tuple(images.mean((0, 2, 3)).tolist()), tuple((images.std((0, 2, 3)) + 1e-6).tolist()))

    def seen(self) -> Any:
        norm = self._normalization
        own = () if self.transform is None else (self.transform,)
        return (list(norm.mean), list(norm.std), self.crop, self.flip, *own)

    def declared(self) -> tuple[int, list[int]] | None:
        """Number of classes and image shape, where they are known before anything is decoded."""
        return None

    def model_defaults(self) -> dict[str, Any]:
        classes, shape = self.declared() or (len(self.classes), list(self._split("train").images.shape[1:]))
        return {"num_classes": classes, "inputs": ["pixel_values"], "in_channels": shape[0], "input_shape": shape}

    def preprocessing(self) -> dict[str, Any]:
        """From an image file to the model's input, and the class names; see `optkit.core.task.Task`.

        A subclass whose images are resized says how.
        """
        channels, height, width = self.model_defaults()["input_shape"]
        return {
            "kind": "image" if channels in COLORS else None,
            "color": COLORS.get(channels),
            "resize": None,
            "size": [height, width],
            "mean": list(self._normalization.mean),
            "std": list(self._normalization.std),
            "formula": "(pixel - 255 mean) / (255 std) in float32, of pixels 0 to 255",
            "layout": "NCHW",
            "classes": self.classes,
        }

    def write_test(self, folder: Path) -> Path:
        """Writes the test images as PNG files in the order in which they are measured; gives the table of their labels.

        They are decoded, resized and cropped already, so no rule of resizing changes them.
        """
        from PIL import Image

        split = self._split("test")
        digits = len(str(len(split) - 1))
        names = [f"{place:0{digits}}.png" for place in range(len(split))]
        for place, name in enumerate(names):
            pixels = split.images[place : place + 1][0].transpose(1, 2, 0)
            Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(folder / name)
        return write_labels(folder, {"file": names}, [self.classes[label] for label in split.labels])

    def batches(
        self, split: str, batch_size: int, *, training: bool = False, seed: int | None = None
    ) -> Iterator[Batch]:
        return self._images(split, batch_size, training, seed)

    def batch_parts(
        self, split: str, batch_size: int, part: Part, *, training: bool = False, seed: int | None = None
    ) -> Iterator[Batch]:
        """A part of each batch, see `optkit.core.task.ReadsParts`; one's own transform or `batches` gives it whole."""
        if (training and self.transform is not None) or type(self).batches is not ImageClassification.batches:
            whole = self.batches(split, batch_size, training=training, seed=seed)
            return (batch.subset(part(len(batch))) for batch in whole)
        return self._images(split, batch_size, training, seed, part)

    def _images(
        self, split: str, batch_size: int, training: bool, seed: int | None, part: Part | None = None
    ) -> Iterator[Batch]:
        augmentation = Augmentation(self.crop, self.flip, self.transform) if training else None
        order = order_seed(training, seed)
        return image_batches(self._split(split), batch_size, self._normalization, augmentation, order, part)

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        import torch

        split = self._split("train")
        index = np.arange(batch_size) % len(split)
        return (self._normalization(torch.from_numpy(split.images[index])),)
