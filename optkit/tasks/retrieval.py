"""Retrieval: embeddings by which pictures of one class find each other, from class folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optkit.core.checks import check_count
from optkit.core.errors import UserError
from optkit.core.seeds import seed_sequence
from optkit.core.task import EMBEDDINGS, POOL, Batch
from optkit.tasks.image_listing import SUFFIXES, list_classes, log_left_out
from optkit.tasks.picture_task import PictureOptions, Pictures, PictureTask, looked_at
from optkit.tasks.reading import order_seed
from optkit.tasks.split_folders import SPLIT, split_paths

LEAST = 2  # pictures of a class: one is found by another
SEED = 0


class Retrieval(PictureTask):
    """``train/CLASS/*.png``, ``test/CLASS/*.png`` and perhaps ``validation/CLASS/*.png``; classes may differ.

    A model gives a vector for each picture. Each test picture is asked against all others of the test split. The
    shorter side of a picture is resized to `image_size`, and the middle cut out. In training, the pictures of a class
    come `per_class` at a time, so that a batch holds some of each.

    Args:
        path: the folder of the splits.
        embedding: the length of the vector that a model of optkit gives where its config says none (``num_classes``).
        per_class: pictures of a class that come together in training.
        image_size: of the square; None keeps pictures as they are, all of one size.
        crop: pixels of padding for the random crop in training; 0 for none.
        flip: whether training flips pictures left to right.
        mean: what inputs are normalized with, per channel of [0, 1] pixels; None takes the train split's own.
        std: likewise.
        loss: a function of outputs and classes that gives a scalar, or its dotted path.
        metrics: as in `optkit.tasks.LoaderTask`.
        validation_share: share of each train class held out where there is no validation split.
        workers: processes that read files; None: the number of usable cores.
        limit: at most so many examples a split, whole classes first; None for all.

    Raises:
        UserError: no such folders.
    """

    def __init__(
        self,
        *,
        path: str,
        embedding: int = 64,
        per_class: int = 4,
        image_size: int | None = 224,
        crop: int = 0,
        flip: bool = True,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        loss: Any = "optkit.tasks.supervised_contrastive_loss",
        metrics: Any = ("recall@1", "recall@5"),
        validation_share: float = 0.1,
        workers: int | None = None,
        limit: int | None = None,
    ):
        check_count("embedding", embedding)
        check_count("per_class", per_class, least=LEAST)
        self.folders = split_paths(path, SPLIT, "path")
        self.embedding, self.per_class = embedding, per_class
        self.share, self.most = validation_share, limit
        super().__init__(
            ("train", "validation", "test"),
            PictureOptions(image_size, False, crop, flip, mean, std),
            loss=loss,
            metrics=metrics,
            output_kind=EMBEDDINGS,
            validation_share=validation_share,
            workers=workers,
            limit=None,
        )

    @cached_property
    def _found(self) -> tuple[dict[str, list[Path]], dict[str, NDArray[np.int64]], list[str]]:
        """Files and classes of each split, and the class names of all."""
        listed = {split: _classes(folder) for split, folder in self.folders.items()}
        names = sorted({name for of_split in listed.values() for name in of_split})
        number = {name: n for n, name in enumerate(names)}
        files = {split: [file for of_class in of.values() for file in of_class] for split, of in listed.items()}
        labels = {
            split: np.array([number[name] for name, of_class in of.items() for _ in of_class], dtype=np.int64)
            for split, of in listed.items()
        }
        places = {split: np.arange(len(of)) for split, of in labels.items()}
        if "validation" not in places:
            source = {"train": "train", "validation": "train", "test": "test"}
            held = held_out(labels["train"], self.share)
            places |= {"train": np.setdiff1d(places["train"], held), "validation": held}
        else:
            source = {split: split for split in places}
        if self.most is not None:
            places = {s: of[some_classes(labels[source[s]][of], self.most)] for s, of in places.items()}
        return (
            {split: [files[source[split]][n] for n in of] for split, of in places.items()},
            {split: labels[source[split]][of] for split, of in places.items()},
            names,
        )

    @cached_property
    def class_names(self) -> list[str]:
        return self._found[2]

    def datasets(self) -> Mapping[str, Any]:
        import torch

        files, labels, _ = self._found
        looks = {split: looked_at(of, f"{split} images") for split, of in files.items()}
        picture = self.picture_input(files["train"], {s: [one["image"] for one in of] for s, of in looks.items()})
        found = {}
        for split, of_split in files.items():
            content = [one["hash"] for one in looks[split]]
            state = self.fingerprint_of(picture, content, labels[split].tolist(), self.per_class)
            found[split] = Pictures(of_split, picture, torch.from_numpy(labels[split]), state)
        return found

    def model_defaults(self) -> dict[str, Any]:
        return super().model_defaults() | {"num_classes": self.embedding}

    def mismatch(self, output: Any, count: int) -> str | None:
        shape = list(output.shape) if hasattr(output, "shape") else type(output).__name__
        if not isinstance(shape, list) or len(shape) != 2 or shape[0] != count:
            return f"it gives {shape} for {count} examples: a vector for each, [{count}, size]"
        return super().mismatch(output, count)

    def batches(
        self, split: str, batch_size: int, *, training: bool = False, seed: int | None = None
    ) -> Iterator[Batch]:
        if not training or split not in ("train", POOL):
            yield from super().batches(split, batch_size, training=training, seed=seed)
            return
        number = order_seed(training, seed) or 0
        examples, labels = self._split(split), self._found[1]["train"]
        order = grouped(labels, self.per_class, np.random.default_rng(seed_sequence(number, "classes")))
        for batch in examples.subset(order).batches(batch_size, None):
            index = batch.index.new_tensor(order[batch.index.numpy()])
            random = np.random.default_rng(seed_sequence(number, "augmentation", int(index[0])))
            yield self.augmented(replace(batch, index=index), random)


def _classes(folder: Path) -> dict[str, list[Path]]:
    """The pictures of each class folder.

    Raises:
        UserError: fewer than two classes, or a class with one picture.
    """
    listing = list_classes(folder)
    log_left_out(folder, listing.left_out)
    if len(listing.classes) < 2:
        message = f"{folder} has {len(listing.classes)} class folders with images"
        if listing.empty:
            message += f", and {len(listing.empty)} without, such as '{listing.empty[0]}'"
        raise UserError(message, key="task.path", fix=f"at least 2, each with images ({' '.join(SUFFIXES)})")
    files = iter(listing.images)
    found = {name: list(islice(files, count)) for name, count in zip(listing.classes, listing.counts, strict=True)}
    if alone := [name for name, images in found.items() if len(images) < LEAST]:
        message = f"{folder / alone[0]} has one image, which no other of its class can find"
        raise UserError(message, key="task.path", value=alone[0], fix="add images, or take the class out")
    return found


def held_out(labels: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    """Places of the validation examples: a share of each class, and two at least, of classes of four and more.

    Raises:
        UserError: there is none.
    """
    random = np.random.default_rng(SEED)
    found: list[int] = []
    for label in np.unique(labels):
        places = random.permutation(np.flatnonzero(labels == label))
        if len(places) >= 2 * LEAST:
            found += places[: min(max(LEAST, round(share * len(places))), len(places) - LEAST)].tolist()
    if not found:
        message = "no train class has 4 images, of which 2 could be held out"
        raise UserError(message, key="task.path", fix="add images, or give a validation folder")
    return np.sort(np.array(found, dtype=np.int64))


def some_classes(labels: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Places of at most so many examples: pairs of each class in turn, as each needs another."""
    pairs = sorted(
        (turn // LEAST, int(label), place)
        for label in np.unique(labels)
        for turn, place in enumerate(np.flatnonzero(labels == label).tolist())
    )
    return np.sort(np.array([place for _, _, place in pairs[: max(most, 2 * LEAST)]], dtype=np.int64))


def grouped(labels: NDArray[np.int64], size: int, random: np.random.Generator) -> NDArray[np.int64]:
    """All places in a random order in which those of a class come `size` at a time."""
    groups = []
    for label in np.unique(labels):
        places = random.permutation(np.flatnonzero(labels == label))
        groups += [places[n : n + size] for n in range(0, len(places), size)]
    return np.concatenate([groups[n] for n in random.permutation(len(groups))])
