"""Pictures with masks: pairs by name, what the masks hold, and one example at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optkit.core.errors import UserError
from optkit.core.task import NO_LABEL
from optkit.tasks.image_listing import list_images, log_left_out
from optkit.tasks.inspection import content_hash
from optkit.tasks.pictures import PictureInput, picture_size, read_mask, stretched

if TYPE_CHECKING:
    from torch import Tensor

MOST = 255  # classes
LOSSY = (".jpg", ".jpeg")


@dataclass(frozen=True)
class Pair:
    """A picture and its mask.

    Attributes:
        name: of both, below their folders, without the suffix.
        image: the picture's file.
        mask: the mask's.
    """

    name: str
    image: Path
    mask: Path

    @property
    def files(self) -> tuple[Path, ...]:
        """Both."""
        return self.image, self.mask

    def look(self) -> dict[str, Any]:
        """Hashes, sizes, and the numbers that the mask holds; reads the mask, and of the picture the size."""
        mask = read_mask(self.mask)
        return {
            "hashes": [content_hash(self.image), content_hash(self.mask)],
            "image": list(picture_size(self.image)),
            "mask": list(mask.shape),
            "numbers": np.unique(mask).tolist(),
        }


def find_pairs(images: Path, masks: Path) -> list[Pair]:
    """The pictures of a folder and the masks of the same names in another.

    Raises:
        UserError: one without the other, two of one name, none at all, or a mask in a format that changes numbers.
    """
    sides = [_by_name(folder, option) for folder, option in ((images, "images"), (masks, "masks"))]
    for (mine, other), folder, what in zip((sides, sides[::-1]), (masks, images), ("mask", "image"), strict=True):
        if alone := sorted(set(mine) - set(other)):
            more = f", and {len(alone) - 1} more such files" if len(alone) > 1 else ""
            message = f"{mine[alone[0]]} has no {what} in {folder}{more}"
            raise UserError(message, key="task.path", fix="images and masks have the same names")
    for path in sides[1].values():
        if path.suffix.lower() in LOSSY:
            message = f"{path} is a JPEG file, which changes the numbers of a mask"
            raise UserError(message, key="task.masks", fix="save masks as PNG")
    return [Pair(name, sides[0][name], sides[1][name]) for name in sorted(sides[0])]


def _by_name(folder: Path, option: str) -> dict[str, Path]:
    found = list_images(folder)
    log_left_out(folder, found.left_out)
    named: dict[str, Path] = {}
    for path in found.images:
        name = str(path.relative_to(folder).with_suffix(""))
        if name in named:
            message = f"{named[name]} and {path.name} have one name"
            raise UserError(message, key=f"task.{option}", fix="keep one of them")
        named[name] = path
    if not named:
        raise UserError(f"{folder} holds no images", key=f"task.{option}", fix="give a folder of images")
    return named


def class_numbers(
    values: Sequence[int] | None, classes: Sequence[str] | None, found: Sequence[int], ignore: int | None
) -> dict[int, int]:
    """The class of each number that masks may hold; of what is ignored `NO_LABEL`.

    Args:
        values: the numbers in the order of their classes; None: they are 0, 1, ....
        classes: names, in that order; None: as many as the train split's numbers ask for.
        found: in the masks of the train split.
        ignore: a number of pixels that are left out.

    Raises:
        UserError: one class, more than 255, another count than of names, or 0 and 255 alone, of which 255 is ignored.
    """
    if values is None:
        held = [number for number in found if number != ignore]
        if classes is None and set(found) == {0, ignore}:
            message = f"the masks hold 0 and {ignore} alone, and {ignore} is task.ignore"
            raise UserError(
                message, key="task.ignore", fix=f"two classes: task.mask_values=[0,{ignore}] task.ignore=null"
            )
        values = range(max(held, default=0) + 1 if classes is None else len(classes))
    if ignore in values and not isinstance(values, range):
        message = f"{ignore} is a class in task.mask_values"
        raise UserError(message, key="task.ignore", value=ignore, fix="task.ignore=null, or take it out there")
    if classes is not None and len(classes) != len(values):
        message = f"{len(values)} values for {len(classes)} class names"
        raise UserError(message, key="task.mask_values", fix="give one for each class")
    if not 2 <= len(values) <= MOST:
        message = f"the train masks have {len(values)} classes"
        raise UserError(message, key="task.masks", fix=f"2 to {MOST}; task.mask_values and classes_from name them")
    numbers = {value: number for number, value in enumerate(values)}
    return numbers if ignore is None else numbers | {ignore: NO_LABEL}


def check_pairs(
    split: str, pairs: Sequence[Pair], found: Sequence[Mapping[str, Any]], numbers: Mapping[int, int]
) -> None:
    """Raises UserError for a mask of another size than its picture, or with a number that is no class."""
    for pair, one in zip(pairs, found, strict=True):
        if one["mask"] != one["image"]:
            (height, width), (high, wide) = one["mask"], one["image"]
            message = f"{split}: the mask {pair.mask} is {width}x{height} pixels, and its image {wide}x{high}"
            raise UserError(message, key="task.path", fix="a mask has a number for each pixel of its image")
        if unknown := [number for number in one["numbers"] if number not in numbers]:
            known = sorted(numbers)
            shown = f"0 to {known[-1]}" if known == list(range(len(known))) else ", ".join(map(str, known[:40]))
            message = f"{split}: the mask {pair.mask} holds {unknown[0]}, which is no class"
            raise UserError(message, key="task.path", value=unknown[0], fix=f"known: {shown}; see task.classes_from")


@dataclass(frozen=True)
class MaskedPictures:
    """Pictures with masks, one at a time: ``(3, H, W)`` float32, and classes ``(H, W)`` int64, `NO_LABEL` for none.

    Attributes:
        pairs: the files.
        picture: makes the input.
        numbers: from `class_numbers`.
        fingerprint: of all that is given.
    """

    pairs: Sequence[Pair]
    picture: PictureInput
    numbers: Mapping[int, int]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        import torch
        from PIL import Image

        pair = self.pairs[place]
        mask = read_mask(pair.mask)
        held, where = np.unique(mask, return_inverse=True)
        # one more, as what is ignored is below 0
        classes = np.array([self.numbers[n] + 1 for n in held.tolist()], dtype=np.uint8)[where.reshape(mask.shape)]
        if self.picture.size is not None:
            classes = np.array(stretched(Image.fromarray(classes), self.picture.size, nearest=True))
        return self.picture(pair.image), torch.from_numpy(classes.astype(np.int64) - 1)
