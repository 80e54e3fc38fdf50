"""Segmentation: a class at each pixel, from folders of pictures and masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from optkit.core.checks import check_count, check_distinct
from optkit.core.errors import UserError
from optkit.core.task import CLASS_MAPS, NO_LABEL, Batch
from optkit.tasks.inspection import inspected
from optkit.tasks.masks import MaskedPictures, Pair, check_pairs, class_numbers, find_pairs
from optkit.tasks.picture_task import PictureOptions, PictureTask
from optkit.tasks.split_folders import split_paths

if TYPE_CHECKING:
    import numpy as np


class Segmentation(PictureTask):
    """Folders of pictures and masks of the same names; a mask holds a class number at each pixel.

    Both are stretched to `image_size`: pictures bilinearly, masks to the nearest pixel. Targets ``(N, H, W)`` hold -1
    where no class counts, as do those of the metrics.

    Args:
        path: the folder that `images` and `masks` are below.
        images: the folder of each split's pictures; ``{split}`` stands for train, validation and test.
        masks: that of the masks: PNG, BMP, TIFF or WebP with a palette or in grey.
        classes_from: class names in the order of their numbers; None numbers the classes of the train masks.
        ignore: the number of pixels that do not count; None: all do.
        mask_values: the numbers in the masks in the order of the classes, such as [0, 255]; None: 0, 1, 2, ....
        image_size: height and width, or one number for both; None keeps pictures as they are, all of one size.
        crop: pixels of padding for the random crop in training; what comes in does not count.
        flip: whether training flips pictures left to right.
        mean: what inputs are normalized with, per channel of [0, 1] pixels; None takes the train split's own.
        std: likewise.
        loss: as in `optkit.tasks.LoaderTask`; ``cross_entropy`` is the mean over pixels.
        metrics: as in `optkit.tasks.LoaderTask`.
        validation_share: share of train held out at random where there is no validation split.
        workers: processes that read files; None: the number of usable cores.
        limit: at most so many examples a split; None for all.

    Raises:
        UserError: no such folders.
    """

    def __init__(
        self,
        *,
        path: str,
        images: str = "{split}/images",
        masks: str = "{split}/masks",
        classes_from: Sequence[str] | None = None,
        ignore: int | None = 255,
        mask_values: Sequence[int] | None = None,
        image_size: int | Sequence[int] | None = None,
        crop: int = 0,
        flip: bool = True,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        loss: Any = "cross_entropy",
        metrics: Any = ("mean_iou",),
        validation_share: float = 0.1,
        workers: int | None = None,
        limit: int | None = None,
    ):
        self.images, self.masks = (split_paths(path, x, key) for x, key in ((images, "images"), (masks, "masks")))
        if only := sorted(set(self.images) ^ set(self.masks)):
            there = "images" if only[0] in self.images else "masks"
            raise UserError(f"{only[0]} has {there} alone", key="path", value=path, fix="give both, or neither")
        check_distinct("classes_from", classes_from or (), "give each class once")
        if ignore is not None:
            check_count("ignore", ignore, least=0)
        self.classes_from, self.ignore, self.mask_values = classes_from, ignore, mask_values
        super().__init__(
            self.images,
            PictureOptions(image_size, True, crop, flip, mean, std),
            loss=loss,
            metrics=metrics,
            output_kind=CLASS_MAPS,
            validation_share=validation_share,
            workers=workers,
            limit=limit,
        )

    @cached_property
    def _found(self) -> tuple[dict[str, list[Pair]], dict[str, list[dict[str, Any]]], dict[int, int]]:
        """Pairs, what a look at each found, and the class of each number in the masks."""
        pairs = {split: find_pairs(self.images[split], self.masks[split]) for split in self.images}
        looks = {
            split: inspected("masks", [p.files for p in of], lambda n, of=of: of[n].look(), f"{split} masks")  # type: ignore[misc]
            for split, of in pairs.items()
        }
        held = sorted({number for one in looks["train"] for number in one["numbers"]})
        numbers = class_numbers(self.mask_values, self.classes_from, held, self.ignore)
        for split, of_split in pairs.items():
            check_pairs(split, of_split, looks[split], numbers)
        return pairs, looks, numbers

    @cached_property
    def class_names(self) -> list[str]:
        if self.classes_from is not None:
            return list(map(str, self.classes_from))
        return [str(value) for value, number in self._found[2].items() if number != NO_LABEL]

    def datasets(self) -> Mapping[str, Any]:
        pairs, looks, numbers = self._found
        sizes = {split: [one["image"] for one in of] for split, of in looks.items()}
        picture = self.picture_input([pair.image for pair in pairs["train"]], sizes)
        found = {}
        for split, of_split in pairs.items():
            content = [[pair.name, *one["hashes"]] for pair, one in zip(of_split, looks[split], strict=True)]
            state = self.fingerprint_of(picture, content, sorted(numbers.items()))
            found[split] = MaskedPictures(of_split, picture, numbers, state)
        return found

    def known(self) -> dict[str, Any]:
        return super().known() | {"ignore": NO_LABEL}

    def mismatch(self, output: Any, count: int) -> str | None:
        shape = list(output.shape) if hasattr(output, "shape") else type(output).__name__
        wanted = [count, len(self.class_names), *self._one.targets.shape[1:]]
        if shape != wanted:
            return f"it gives {shape} for {count} examples, and not {wanted}: logits of each class at each pixel"
        return super().mismatch(output, count)

    def augmented(self, batch: Batch, random: np.random.Generator) -> Batch:
        import torch

        # a mask goes with its picture as one more channel, in which padding, 0, is no label
        both = torch.cat([batch.inputs[0], (batch.targets - NO_LABEL)[:, None]], 1)
        both = self.augmentation(both, random)
        return replace(batch, inputs=(both[:, :-1],), targets=both[:, -1].long() + NO_LABEL)
