"""Boxes as COCO writes them: read, checked, and one picture at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optkit.core.checks import is_number
from optkit.core.errors import UserError, did_you_mean, first_line
from optkit.tasks.inspection import content_hash
from optkit.tasks.pictures import PictureInput, file_below, picture_size

if TYPE_CHECKING:
    from torch import Tensor

KEY = "task.annotations"
MOST = 1e9  # pixels
OUTSIDE = 1.0  # pixels by which a box may end outside its picture: COCO's own do, by rounding


@dataclass
class BoxedPicture:
    """A picture with its boxes.

    Attributes:
        image: the file.
        size: its height and width as the annotations say; None where they do not.
        boxes: x1, y1, x2, y2 in pixels.
        labels: class numbers.
        crowds: whether a box holds many objects that are not told apart.
        ids: of the annotations.
    """

    image: Path
    size: tuple[int, int] | None
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    crowds: list[int] = field(default_factory=list)
    ids: list[Any] = field(default_factory=list)

    @property
    def files(self) -> tuple[Path, ...]:
        """The picture's."""
        return (self.image,)

    def look(self) -> dict[str, Any]:
        """The hash and the size of the picture's file."""
        return {"hash": content_hash(self.image), "image": list(picture_size(self.image))}


def read_coco(path: Path) -> dict[str, Any]:
    """The content of an annotation file, its lists as they are.

    Raises:
        UserError: it is no JSON, or has not the three lists of COCO's format.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {first_line(error)}", key=KEY, fix="give COCO's JSON") from error
    for name in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(name), list):
            fix = "COCO's format has images, annotations and categories"
            raise UserError(f"{path} has no list '{name}'", key=KEY, fix=fix)
        if not all(isinstance(entry, dict) for entry in data[name]):
            raise UserError(f"{path}: '{name}' holds what is no object", key=KEY)
    return data


def class_names(data: Mapping[str, Any], path: Path) -> list[str]:
    """The names of the categories, in the order of their ids, which is that of the class numbers.

    Raises:
        UserError: there is none, one without an id or a name, or two of one.
    """
    categories = data["categories"]
    for category in categories:
        _check_id(category.get("id", 0), f"{path}: category")
    for name in ("id", "name"):
        values = [_given(category, name, f"{path}: category", category.get("id", "?")) for category in categories]
        if repeated := [value for value in values if values.count(value) > 1]:
            raise UserError(f"{path} has two categories of the {name} {repeated[0]!r}", key=KEY, fix="keep one of them")
    if not categories:
        raise UserError(f"{path} has no category", key=KEY)
    try:
        return [str(category["name"]) for category in sorted(categories, key=lambda category: category["id"])]
    except TypeError as error:
        raise UserError(f"{path}: ids of categories are of several types", key=KEY, fix="whole numbers") from error


def read_pictures(data: Mapping[str, Any], path: Path, images: Path, classes: Sequence[str]) -> list[BoxedPicture]:
    """The pictures of an annotation file, in its order, with their boxes.

    Args:
        data: from `read_coco`.
        path: of the file, for errors.
        images: the folder that ``file_name`` is below.
        classes: of the train split, by which categories are numbered: files may number them differently.

    Raises:
        UserError: a picture that is not there, a box without a picture, of no class, of no area or no box at all.
    """
    number = {name: n for n, name in enumerate(classes)}
    label = {}
    for category in data["categories"]:
        name = str(_given(category, "name", f"{path}: category", category.get("id", "?")))
        if name not in number:
            raise UserError(
                f"{path} has the class '{name}', which train has not", key=KEY, fix=did_you_mean(name, classes)
            )
        label[category.get("id")] = number[name]
    found: dict[Any, BoxedPicture] = {}
    for entry in data["images"]:
        name, place = (_given(entry, key, f"{path}: image", entry.get("id", "?")) for key in ("file_name", "id"))
        _check_id(place, f"{path}: image")
        if place in found:
            raise UserError(f"{path} has two images of the id {place}", key=KEY, fix="give each an id of its own")
        file = file_below(images, str(name), str(path))
        size = (entry["height"], entry["width"]) if "height" in entry and "width" in entry else None
        found[place] = BoxedPicture(file, size)
    for entry in data["annotations"]:
        what = f"{path}: annotation {entry.get('id', '?')}"
        for key in ("image_id", "category_id"):
            _check_id(entry.get(key), what)
        if (picture := found.get(entry.get("image_id"))) is None:
            raise UserError(f"{what} is of the image {entry.get('image_id')!r}, which is not there", key=KEY)
        if entry.get("category_id") not in label:
            raise UserError(f"{what} is of the category {entry.get('category_id')!r}, which is not there", key=KEY)
        picture.boxes.append(_box(entry.get("bbox"), what))
        picture.labels.append(label[entry["category_id"]])
        if (crowd := entry.get("iscrowd", 0)) not in (0, 1):
            raise UserError(f"{what} has the iscrowd {crowd!r}", key=KEY, fix="0 or 1")
        picture.crowds.append(int(crowd))
        picture.ids.append(entry.get("id", "?"))
    if not any(picture.boxes for picture in found.values()):
        raise UserError(f"{path} has no box", key=KEY, fix="annotations hold a bbox: x, y, width, height")
    return list(found.values())


def check_pictures(pictures: Iterable[BoxedPicture], found: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Raises UserError for a picture of another size than the annotations say, or a box outside of it.

    Boxes that end up to a pixel outside are cut.
    """
    for picture, one in zip(pictures, found, strict=True):
        height, width = one["image"]
        if picture.size not in (None, (height, width)):
            said = picture.size or (0, 0)
            message = f"{picture.image} is {width}x{height} pixels, and {path} says {said[1]}x{said[0]}"
            raise UserError(message, key=KEY, fix="boxes are in pixels of the file, as a viewer shows it")
        for place, (x1, y1, x2, y2) in enumerate(picture.boxes):
            if min(x1, y1) < -OUTSIDE or x2 > width + OUTSIDE or y2 > height + OUTSIDE:
                shown = ", ".join(f"{x:g}" for x in (x1, y1, x2 - x1, y2 - y1))
                message = f"{path}: annotation {picture.ids[place]}: the box [{shown}] lies outside {picture.image}, "
                message += f"{width}x{height} pixels"
                raise UserError(message, key=KEY, fix="a bbox is x, y, width, height in pixels")
            picture.boxes[place] = (max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height))


def _check_id(value: Any, what: str) -> None:
    if not isinstance(value, (int, str, type(None))):
        raise UserError(f"{what} has the id {value!r}", key=KEY, fix="ids are whole numbers")


def _given(entry: Mapping[str, Any], name: str, what: str, place: Any) -> Any:
    if name not in entry:
        raise UserError(f"{what} {place} has no '{name}'", key=KEY)
    return entry[name]


def _box(values: Any, what: str) -> tuple[float, float, float, float]:
    good = isinstance(values, list) and len(values) == 4 and all(is_number(x) and abs(x) < MOST for x in values)
    if not good:
        raise UserError(f"{what} has no box of four numbers: {values!r}", key=KEY, fix="x, y, width, height in pixels")
    x, y, width, height = map(float, values)
    if width <= 0 or height <= 0:
        raise UserError(f"{what}: the box {values} has no area", key=KEY, fix="correct it, or take it out")
    return x, y, x + width, y + height


@dataclass(frozen=True)
class BoxedPictures:
    """Pictures with boxes, one at a time: ``(3, H, W)`` float32, and a mapping of ``boxes``, ``labels``, ``iscrowd``.

    Boxes ``(n, 4)`` float32 are x1, y1, x2, y2 in pixels of the input, so they are stretched with the picture; labels
    ``(n,)`` int64 are from 0. The mapping also has the input's ``image_size`` ``(2,)``: height and width.

    Attributes:
        pictures: the files and their boxes.
        picture: makes the input.
        sizes: height and width of each file.
        fingerprint: of all that is given.
    """

    pictures: Sequence[BoxedPicture]
    picture: PictureInput
    sizes: Sequence[tuple[int, int]]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, place: int) -> tuple[Tensor, dict[str, Tensor]]:
        import torch

        one, (height, width) = self.pictures[place], self.sizes[place]
        high, wide = self.picture.size or (height, width)
        boxes = np.array(one.boxes, dtype=np.float64).reshape(-1, 4) * np.tile([wide / width, high / height], 2)
        target = {
            "boxes": torch.from_numpy(boxes.astype(np.float32)),
            "labels": torch.tensor(one.labels, dtype=torch.int64),
            "iscrowd": torch.tensor(one.crowds, dtype=torch.int64),
            "image_size": torch.tensor([high, wide]),
        }
        return self.picture(one.image), target
