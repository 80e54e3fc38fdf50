"""Makes pictures of shapes, with masks, boxes, labels and numbers that are right by construction.

    python scenes.py scenes            # segmentation, detection, several labels, regression
    python scenes.py shapes --retrieval

Discs, squares and triangles lie on a noisy background, in any colour. Numbers and files follow from the seed alone.
Needs numpy and Pillow.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("disc", "square", "triangle")
SIZES = {"train": 240, "validation": 40, "test": 80}


def make_scenes(folder: Path | str, sizes: Mapping[str, int] = SIZES, side: int = 64, seed: int = 0) -> Path:
    """Writes scenes of up to four shapes, of each split::

        SPLIT/images/0000.png   the picture
        SPLIT/masks/0000.png    its mask: 0 background, 1 disc, 2 square, 3 triangle; 255 at edges
        SPLIT.json              the boxes, as COCO writes them
        SPLIT.csv               file, disc, square, triangle (0 or 1), shapes (names), covered (percent of the picture)

    Args:
        folder: of the files.
        sizes: pictures of each split.
        side: of a picture in pixels.
        seed: of everything random.

    Returns:
        The folder.
    """
    folder = Path(folder)
    random = np.random.default_rng(seed)
    for split, count in sizes.items():
        for name in ("images", "masks"):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
        rows: list[list[Any]] = []
        coco: dict[str, list[Any]] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": n, "name": name} for n, name in enumerate(SHAPES, 1)],
        }
        for number in range(count):
            picture, mask, boxes = _scene(side, random)
            name = f"{number:04}.png"
            picture.save(folder / split / "images" / name)
            mask.save(folder / split / "masks" / name)
            coco["images"].append({"id": number, "file_name": name, "width": side, "height": side})
            for label, (left, top, right, bottom) in boxes:
                box = [left, top, right - left, bottom - top]
                coco["annotations"].append(
                    {
                        "id": len(coco["annotations"]) + 1,
                        "image_id": number,
                        "category_id": label,
                        "bbox": box,
                        "area": box[2] * box[3],
                        "iscrowd": 0,
                    }
                )
            there = [int(any(label == n for label, _ in boxes)) for n in range(1, len(SHAPES) + 1)]
            named = ";".join(shape for shape, is_there in zip(SHAPES, there, strict=True) if is_there)
            covered = 100 * float((np.asarray(mask) > 0).mean())
            rows.append([f"{split}/images/{name}", *there, named, f"{covered:.2f}"])
        (folder / f"{split}.json").write_text(json.dumps(coco))
        with (folder / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["file", *SHAPES, "shapes", "covered"], *rows])
    return folder


def make_shapes(folder: Path | str, sizes: Mapping[str, int] = SIZES, side: int = 32, seed: int = 0) -> Path:
    """Writes pictures of one shape, ``SPLIT/disc/0000.png`` and so on: a class for each shape, of any colour.

    Args:
        folder: of the files.
        sizes: pictures of each split; the shapes come in turn.
        side: of a picture in pixels.
        seed: of everything random.

    Returns:
        The folder.
    """
    folder = Path(folder)
    random = np.random.default_rng(seed)
    for split, count in sizes.items():
        for number in range(count):
            label = number % len(SHAPES) + 1
            picture = _background(side, random)
            mask = Image.new("L", (side, side))
            _draw(picture, mask, label, _place(side, random), random)
            (folder / split / SHAPES[label - 1]).mkdir(parents=True, exist_ok=True)
            picture.save(folder / split / SHAPES[label - 1] / f"{number:04}.png")
    return folder


def _scene(side: int, random: np.random.Generator) -> tuple[Image.Image, Image.Image, list[tuple[int, list[int]]]]:
    """A picture, its mask, and the class and the box of each shape; shapes do not overlap."""
    picture, mask = _background(side, random), Image.new("L", (side, side))
    boxes: list[tuple[int, list[int]]] = []
    for _ in range(int(random.integers(1, 5))):
        left, top, size = _place(side, random)
        box = [left, top, left + size, top + size]
        if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for _, b in boxes):
            continue
        label = int(random.integers(1, len(SHAPES) + 1))
        boxes.append((label, _draw(picture, mask, label, (left, top, size), random)))
    return picture, mask, boxes


def _background(side: int, random: np.random.Generator) -> Image.Image:
    noise = random.normal(random.uniform(60, 120), 18, (side, side, 3))
    return Image.fromarray(noise.clip(0, 255).astype(np.uint8))


def _place(side: int, random: np.random.Generator) -> tuple[int, int, int]:
    """Left, top and size of a shape."""
    size = int(random.integers(side // 5, side // 2))
    left, top = random.integers(1, side - size - 1, 2)
    return int(left), int(top), size


def _draw(
    picture: Image.Image, mask: Image.Image, label: int, place: tuple[int, int, int], random: np.random.Generator
) -> list[int]:
    """Draws a shape into a picture and its mask; gives its box: left, top, right, bottom, the latter two excluded."""
    left, top, size = place
    right, bottom = left + size - 1, top + size - 1
    color = tuple(int(x) for x in random.integers(130, 256, 3))
    for image, fill, outline in ((picture, color, color), (mask, label, 255)):
        pen = ImageDraw.Draw(image)
        if SHAPES[label - 1] == "disc":
            pen.ellipse((left, top, right, bottom), fill=fill, outline=outline)
        elif SHAPES[label - 1] == "square":
            pen.rectangle((left, top, right, bottom), fill=fill, outline=outline)
        else:
            pen.polygon([(left, bottom), (right, bottom), ((left + right) // 2, top)], fill=fill, outline=outline)
    return [left, top, right + 1, bottom + 1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--retrieval", action="store_true", help="pictures of one shape, in class folders")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    print((make_shapes if chosen.retrieval else make_scenes)(chosen.folder, seed=chosen.seed))
