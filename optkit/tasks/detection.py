"""Detection: boxes with classes, from COCO's annotation files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from optkit.core.checks import check_share
from optkit.core.errors import UserError
from optkit.core.task import OTHER, Batch
from optkit.metrics.registry import resolve_metrics
from optkit.tasks.coco_files import BoxedPicture, BoxedPictures, check_pictures, class_names, read_coco, read_pictures
from optkit.tasks.inspection import inspected
from optkit.tasks.picture_task import PictureOptions, PictureTask, look_at
from optkit.tasks.split_folders import split_paths

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from optkit.core.metric import Metric


class Detection(PictureTask):
    """Pictures with boxes in COCO's JSON: ``images``, ``annotations`` with ``bbox``, and ``categories``.

    Pictures are stretched to `image_size`, and boxes with them, which changes no overlap. Targets are a list with a
    mapping for each picture: ``boxes`` ``(n, 4)``: x1, y1, x2, y2 in pixels of the input, ``labels`` ``(n,)`` from 0 in
    the order of the categories' ids, ``iscrowd`` ``(n,)``, and ``image_size`` ``(2,)``: height and width of the input.

    A model gives one of two things. Of a dense detector it is ``boxes`` ``(N, places, 4)`` and ``scores`` ``(N, places,
    classes)``, logits, as a dict or a tuple: `optkit.tasks.detections` picks the best boxes before metrics see them,
    outside of what is timed. Otherwise it is what `optkit.metrics.detection.CocoMAP` takes.

    Args:
        path: the folder that `annotations` and `images` are below.
        annotations: the file of each split; ``{split}`` stands for train, validation and test.
        images: the folder that each split's ``file_name`` is below.
        image_size: height and width, or one number for both; None keeps pictures as they are, all of one size.
        flip: whether training flips pictures left to right, boxes included.
        mean: what inputs are normalized with, per channel of [0, 1] pixels; None takes the train split's own.
        std: likewise.
        loss: a function of outputs and targets that gives a scalar, or its dotted path. The default is for dense
            detectors with one grid.
        metrics: as in `optkit.tasks.LoaderTask`, of the detections.
        min_score: of a detection of a dense detector, between 0 and 1.
        overlap: the largest IoU of two detections of one class.
        validation_share: share of train held out at random where there is no validation split.
        workers: processes that read files; None: the number of usable cores.
        limit: at most so many examples a split; None for all.

    Raises:
        UserError: no such files.
    """

    def __init__(
        self,
        *,
        path: str,
        annotations: str = "{split}.json",
        images: str = "{split}/images",
        image_size: int | Sequence[int] | None = None,
        flip: bool = True,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        loss: Any = "optkit.tasks.dense_detection_loss",
        metrics: Any = ("coco_map",),
        min_score: float = 0.01,
        overlap: float = 0.5,
        validation_share: float = 0.1,
        workers: int | None = None,
        limit: int | None = None,
    ):
        check_share("min_score", min_score)
        check_share("overlap", overlap)
        self.annotations = split_paths(path, annotations, "annotations")
        self.images = split_paths(path, images, "images")
        if missing := sorted(set(self.annotations) - set(self.images)):
            raise UserError(f"there are no images of {missing[0]}", key="images", value=images, fix="set task.images")
        self._decoded = Decoded(min_score, overlap)
        super().__init__(
            self.annotations,
            PictureOptions(image_size, True, 0, flip, mean, std),
            loss=loss,
            metrics=metrics,
            output_kind=OTHER,
            validation_share=validation_share,
            workers=workers,
            limit=limit,
            collate=as_list,
        )

    @cached_property
    def _found(self) -> tuple[dict[str, list[BoxedPicture]], dict[str, list[dict[str, Any]]], list[str]]:
        """Pictures with boxes, what a look at each found, and the class names."""
        data = {split: read_coco(path) for split, path in self.annotations.items()}
        classes = class_names(data["train"], self.annotations["train"])
        pictures, looks = {}, {}
        for split, path in self.annotations.items():
            of_split = read_pictures(data[split], path, self.images[split], classes)
            files = [picture.files for picture in of_split]
            looks[split] = inspected("pictures", files, lambda n, of=of_split: look_at(of[n].image), f"{split} images")  # type: ignore[misc]
            check_pictures(of_split, looks[split], path)
            pictures[split] = of_split
        return pictures, looks, classes

    @cached_property
    def class_names(self) -> list[str]:
        return self._found[2]

    def datasets(self) -> Mapping[str, Any]:
        pictures, looks, classes = self._found
        sizes = {split: [one["image"] for one in of] for split, of in looks.items()}
        picture = self.picture_input([one.image for one in pictures["train"]], sizes)
        found = {}
        for split, of_split in pictures.items():
            boxes = [[one.boxes, one.labels, one.crowds] for one in of_split]
            state = self.fingerprint_of(picture, [one["hash"] for one in looks[split]], boxes, classes)
            found[split] = BoxedPictures(of_split, picture, [(h, w) for h, w in sizes[split]], state)
        return found

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        from optkit.metrics.transformed import Transformed

        return tuple(Transformed(metric, self._decoded) for metric in resolve_metrics(self._metrics, **self.known()))

    def mismatch(self, output: Any, count: int) -> str | None:
        if (reason := dense_mismatch(output, count, len(self.class_names))) is not None:
            return reason
        return super().mismatch(output, count)

    def augmented(self, batch: Batch, random: np.random.Generator) -> Batch:
        import torch

        if not self.augmentation.flip:
            return batch
        images, width = batch.inputs[0], batch.inputs[0].shape[-1]
        flipped = random.random(len(batch)) < 0.5
        targets = [
            target | {"boxes": _mirrored(target["boxes"], width)} if is_flipped else target
            for target, is_flipped in zip(batch.targets, flipped, strict=True)
        ]
        images = torch.where(torch.from_numpy(flipped)[:, None, None, None], images.flip(-1), images)
        return replace(batch, inputs=(images,), targets=targets)


@dataclass(frozen=True)
class Decoded:
    """Makes detections of a dense detector's output; other outputs stay as they are.

    Attributes:
        min_score: as in `optkit.tasks.detections`.
        overlap: likewise.
    """

    min_score: float
    overlap: float

    def __call__(self, output: Any, targets: Any) -> tuple[Any, Any]:
        from optkit.tasks.dense_detection import detections

        return detections(output, self.min_score, self.overlap) if is_dense(output) else output, targets


def is_dense(output: Any) -> bool:
    """Whether an output is boxes and scores at places, and no labels."""
    if isinstance(output, Mapping):
        return set(output) == {"boxes", "scores"}
    return isinstance(output, (list, tuple)) and len(output) == 2 and all(hasattr(part, "dim") for part in output)


def dense_mismatch(output: Any, count: int, classes: int) -> str | None:
    """Why a dense detector's output does not fit; None where it does, or is another output."""
    if not is_dense(output):
        if isinstance(output, (Mapping, list, tuple)):
            return None
        return f"it gives {list(getattr(output, 'shape', [])) or type(output).__name__}, not boxes and scores"
    boxes, scores = (output["boxes"], output["scores"]) if isinstance(output, Mapping) else output
    places = scores.shape[1] if scores.dim() == 3 else 0
    if list(boxes.shape) == [count, places, 4] and list(scores.shape) == [count, places, classes]:
        return None
    given = f"boxes {list(boxes.shape)} and scores {list(scores.shape)}"
    return f"it gives {given}, not [{count}, places, 4] and [{count}, places, {classes}], for {classes} classes"


def as_list(examples: list[Any]) -> tuple[Tensor, list[Any]]:
    """A batch whose targets are a list."""
    import torch

    inputs, targets = zip(*examples, strict=True)
    return torch.stack(inputs), list(targets)


def _mirrored(boxes: Tensor, width: int) -> Tensor:
    """Boxes in a picture that is flipped left to right."""
    import torch

    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack([width - x2, y1, width - x1, y2], 1)
