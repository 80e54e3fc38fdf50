"""What tasks on picture files share: size, normalization, augmentation, and the account of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optkit.core.checks import check_count, check_positive, is_number
from optkit.core.errors import UserError
from optkit.core.seeds import seed_sequence
from optkit.core.task import CLASS_MAPS, LABELS, OTHER, Batch
from optkit.metrics.registry import resolve_metrics
from optkit.tasks.given import spread
from optkit.tasks.images import Augmentation
from optkit.tasks.inspection import content_hash, inspected
from optkit.tasks.loader import LoaderTask
from optkit.tasks.pictures import PictureInput, picture_size
from optkit.tasks.reading import order_seed

if TYPE_CHECKING:
    from torch import Tensor

    from optkit.core.metric import Metric

SAMPLE = 500  # pictures of train, from which mean and deviation of pixels are
SMALLEST, LARGEST = 8, 4096  # pixels of a side


@dataclass(frozen=True)
class PictureOptions:
    """How pictures become inputs.

    Attributes:
        image_size: height and width, or one number for both; None keeps pictures as they are, all of one size.
        whole: whether pictures are stretched; otherwise the shorter side is resized, and the middle cut out.
        crop: pixels of padding for the random crop in training; 0 for none.
        flip: whether training flips pictures left to right.
        mean: what inputs are normalized with, per channel of [0, 1] pixels; None takes the train split's own.
        std: likewise.
    """

    image_size: int | Sequence[int] | None
    whole: bool
    crop: int
    flip: bool
    mean: Sequence[float] | None
    std: Sequence[float] | None

    def __post_init__(self) -> None:
        _ = self.size
        check_count("crop", self.crop, least=0)
        if (self.mean is None) != (self.std is None):
            missing = "mean" if self.mean is None else "std"
            raise UserError("mean and std go together", key=missing, fix="give both, or neither")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and (len(values) != 3 or not all(map(is_number, values))):
                message = f"{list(values)} is not one number for each of red, green and blue"
                raise UserError(message, key=name, value=values)
        for value in self.std or ():
            check_positive("std", value)

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width."""
        if self.image_size is None:
            return None
        sides = [self.image_size] * 2 if isinstance(self.image_size, int) else list(self.image_size)
        good = len(sides) == 2 and all(type(side) is int and SMALLEST <= side <= LARGEST for side in sides)
        if not good or not (self.whole or sides[0] == sides[1]):
            fix = f"{SMALLEST} to {LARGEST}" + (", or [height, width]" if self.whole else "")
            raise UserError(f"{self.image_size!r} is no size of a picture", key="image_size", fix=fix)
        return sides[0], sides[1]


class PictureTask(LoaderTask):
    """A task whose splits are found in files; they are looked at when data are first asked for.

    Args:
        splits: that there are.
        options: how pictures become inputs.
        loss: as in `optkit.tasks.LoaderTask`.
        metrics: likewise.
        output_kind: likewise.
        validation_share: likewise.
        workers: likewise.
        limit: likewise.
        collate: likewise.
    """

    def __init__(
        self,
        splits: Collection[str],
        options: PictureOptions,
        *,
        loss: Any,
        metrics: Any,
        output_kind: str,
        validation_share: float,
        workers: int | None,
        limit: int | None,
        collate: Callable[[list[Any]], Any] | None = None,
    ):
        self.options = options
        self.augmentation = Augmentation(options.crop, options.flip)
        super().__init__(
            train=lambda: self._data["train"],
            validation=(lambda: self._data["validation"]) if "validation" in splits else None,
            test=lambda: self._data["test"],
            loss=loss,
            metrics=metrics,
            output_kind=output_kind,
            validation_share=validation_share,
            workers=workers,
            limit=limit,
            collate=collate,
        )

    def datasets(self) -> Mapping[str, Any]:
        """A Dataset with a ``fingerprint`` for each split.

        Raises:
            UserError: files that cannot be used.
        """
        raise NotImplementedError

    def known(self) -> dict[str, Any]:
        """What a metric may ask of the task."""
        return {"classes": self._num_classes}

    @cached_property
    def _data(self) -> Mapping[str, Any]:
        return self.datasets()

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        return resolve_metrics(self._metrics, **self.known())

    def picture_input(self, files: Sequence[Path], sizes: Mapping[str, Sequence[Sequence[int]]]) -> PictureInput:
        """What makes inputs of pictures.

        Args:
            files: the pictures of train.
            sizes: height and width of the pictures of each split.

        Raises:
            UserError: pictures of several sizes without an `image_size`.
        """
        o = self.options
        if o.size is None:
            check_sizes(sizes)
        if o.mean is not None and o.std is not None:
            return PictureInput(o.size, o.whole, tuple(o.mean), tuple(o.std))
        return measured_input(PictureInput(o.size, o.whole, (0, 0, 0), (1, 1, 1)), files)

    def fingerprint_of(self, picture: PictureInput | None, *content: Any) -> str:
        """Of a split: what is in its files, and everything that changes what a model sees of them."""
        state = [list(content), repr(picture), repr(self.augmentation)]
        return hashlib.sha256(json.dumps(state).encode()).hexdigest()

    def model_defaults(self) -> dict[str, Any]:
        return super().model_defaults() | {"inputs": ["pixel_values"]}

    def preprocessing(self) -> dict[str, Any]:
        """From a picture's file to the model's input, and the names of ``classes``, or of ``labels``."""
        picture = self._data["train"].picture
        resize: dict[str, Any] | None = None
        if picture.size is not None and picture.whole:
            resize = {"stretch": list(picture.size), "filter": "bilinear"}
        elif picture.size is not None:
            resize = {"shorter_side": picture.size[0], "filter": "bicubic", "then_crop": "center"}
        found = {
            "kind": "image",
            "color": "RGB",
            "resize": resize,
            "size": list(self._one.inputs[0].shape[2:]),
            "mean": list(picture.mean),
            "std": list(picture.std),
            "formula": "(pixel - 255 mean) / (255 std) in float32, of pixels 0 to 255",
            "layout": "NCHW",
        }
        named = {CLASS_MAPS: "classes", OTHER: "classes", LABELS: "labels"}
        return found | {named[kind]: self.class_names for kind in [self.output_kind] if kind in named}

    def batches(
        self, split: str, batch_size: int, *, training: bool = False, seed: int | None = None
    ) -> Iterator[Batch]:
        for batch in super().batches(split, batch_size, training=training, seed=seed):
            if training:
                # by the first example and the epoch, as those of `optkit.tasks.images`
                place = int(batch.index[0])
                random = np.random.default_rng(seed_sequence(order_seed(training, seed) or 0, "augmentation", place))
                batch = self.augmented(batch, random)
            yield batch

    def augmented(self, batch: Batch, random: np.random.Generator) -> Batch:
        """A batch as training sees it; pixels that come in from outside have the mean of all."""
        return replace(batch, inputs=(self.augmentation(batch.inputs[0], random),))


@dataclass(frozen=True)
class Pictures:
    """Pictures with targets, one at a time: ``(3, H, W)`` float32, and the target.

    Attributes:
        files: of the pictures.
        picture: makes the input.
        targets: ``(N, ...)``.
        fingerprint: of all that is given.
    """

    files: Sequence[Path]
    picture: PictureInput
    targets: Tensor
    fingerprint: str

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        return self.picture(self.files[place]), self.targets[place]


def check_sizes(sizes: Mapping[str, Sequence[Sequence[int]]]) -> None:
    """Raises UserError unless all pictures, of all splits, are of one height and width."""
    first = next(iter(sizes.values()))[0]
    for split, of_split in sizes.items():
        for place, (height, width) in enumerate(of_split):
            if [height, width] != list(first):
                message = f"{split} image {place} is {width}x{height} pixels, the first {first[1]}x{first[0]}"
                raise UserError(message, key="task.image_size", fix="set task.image_size")


def measured_input(plain: PictureInput, files: Sequence[Path]) -> PictureInput:
    """An input with the mean and the standard deviation of pictures, or of a sample, in place of its own."""
    moments, chosen = np.zeros((2, 3)), spread(len(files), SAMPLE)
    for place in chosen:
        pixels = plain.pixels(files[place]) / 255
        moments += pixels.mean((1, 2)), (pixels**2).mean((1, 2))
    mean, square = moments / len(chosen)
    std = np.sqrt(np.maximum(square - mean**2, 0)) + 1e-6
    return replace(plain, mean=tuple(mean.round(6).tolist()), std=tuple(std.round(6).tolist()))


def looked_at(files: Sequence[Path], what: str) -> list[dict[str, Any]]:
    """The hash and the size of each picture's file, once; raises UserError for what is no picture."""
    return inspected("pictures", [[file] for file in files], lambda n: look_at(files[n]), what)


def look_at(file: Path) -> dict[str, Any]:
    """The hash of a picture's file, and its height and width as ``image``."""
    return {"hash": content_hash(file), "image": list(picture_size(file))}
