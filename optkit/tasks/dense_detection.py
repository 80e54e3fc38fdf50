"""A loss, and the detections, of a detector that gives a box and class scores at each place of a grid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from optkit.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

RADIUS = 1.5  # steps of the grid around a box's centre, within which places learn the box
MOST_PLACES, MOST = 1000, 100  # of an image: places that are looked at, and detections that are kept


def dense_detection_loss(outputs: Any, targets: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """The loss of FCOS (Tian et al., 2019) for a single scale, without its centerness branch.

    A place learns a box if it lies in it and near its centre (center sampling); of several the smallest. The place
    nearest to the centre always does. Classes: focal loss (Lin et al., 2017) at all places but those within crowds.
    Boxes: generalized IoU (Rezatofighi et al., 2019). Both are divided by the number of places with a box.

    Args:
        outputs: a mapping, or a tuple, of ``boxes`` ``(N, places, 4)``: x1, y1, x2, y2 in pixels, and ``scores`` ``(N,
            places, classes)``: logits. The places are the cells of a grid over the image, in rows.
        targets: for each image ``boxes`` ``(n, 4)``, ``labels`` ``(n,)``, ``image_size`` ``(2,)``: height and width of
            the input in pixels, and, where there are crowds, ``iscrowd`` ``(n,)``.

    Raises:
        UserError: the places are no grid of square cells over the image.
    """
    from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

    boxes, scores = (part.float() for part in dense_parts(outputs))
    height, width = targets[0]["image_size"].tolist()
    centers, step = grid(scores.shape[1], (height, width))
    centers = centers.to(scores.device)
    wanted, counts = torch.zeros_like(scores), torch.ones_like(scores[..., :1])
    ours, theirs = [], []
    for image, target in enumerate(targets):
        crowd = target["iscrowd"].bool() if "iscrowd" in target else torch.zeros_like(target["labels"]).bool()
        counts[image, _inside(centers, target["boxes"][crowd]).any(1)] = 0
        alone = target["boxes"][~crowd]
        place, box = assigned(centers, alone, step)
        wanted[image, place, target["labels"][~crowd][box]] = 1
        counts[image, place] = 1
        ours.append(boxes[image, place])
        theirs.append(alone[box])
    found, right = torch.cat(ours), torch.cat(theirs)
    classes = (sigmoid_focal_loss(scores, wanted) * counts).sum()
    return (classes + generalized_box_iou_loss(found, right, reduction="sum")) / max(len(right), 1)


def dense_parts(outputs: Any) -> tuple[Tensor, Tensor]:
    """Boxes and scores of a dense detector's output."""
    return (outputs["boxes"], outputs["scores"]) if isinstance(outputs, Mapping) else (outputs[0], outputs[1])


def grid(places: int, image_size: tuple[int, int]) -> tuple[Tensor, float]:
    """The centres ``(places, 2)``, x and y in pixels, of the square cells that cover an image, in rows; and their side.

    Raises:
        UserError: there is no such grid.
    """
    height, width = image_size
    step = math.sqrt(height * width / places)
    rows, columns = round(height / step), round(width / step)
    if rows * columns != places or abs(rows * step - height) > 1e-6 * height:
        message = f"{places} places are no grid of square cells over {width}x{height} pixels"
        raise UserError(message, key="task.loss", fix="give a loss of your own: task.loss=mypkg.my_loss")
    down, across = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return (torch.stack([across, down], -1).reshape(-1, 2) + 0.5) * step, step


def assigned(centers: Tensor, boxes: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """The places that learn a box, and which box each: ``(m,)`` and ``(m,)``.

    Args:
        centers: of the places, ``(places, 2)``.
        boxes: ``(n, 4)``.
        step: of the grid.
    """
    if not len(boxes):
        return (boxes.new_zeros(0, dtype=torch.long),) * 2
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    near = (centers[:, None] - middle).abs().amax(2) < RADIUS * step
    learns = near & _inside(centers, boxes)
    learns[torch.cdist(centers, middle).argmin(0), torch.arange(len(boxes), device=boxes.device)] = True
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    smallest = torch.where(learns, area, math.inf).min(1)
    place = torch.isfinite(smallest.values).nonzero()[:, 0]
    return place, smallest.indices[place]


def _inside(centers: Tensor, boxes: Tensor) -> Tensor:
    """Which places lie in which boxes, ``(places, n)``."""
    return ((centers[:, None] > boxes[:, :2]) & (centers[:, None] < boxes[:, 2:])).all(2)


def detections(outputs: Any, min_score: float = 0.01, overlap: float = 0.5) -> list[dict[str, Tensor]]:
    """What a dense detector finds in each image: its best boxes, less those that overlap a better one of their class.

    Args:
        outputs: as in `dense_detection_loss`.
        min_score: of a detection, between 0 and 1.
        overlap: the largest IoU of two detections of one class.

    Returns:
        For each image ``boxes`` ``(n, 4)``, ``scores`` ``(n,)`` between 0 and 1, and ``labels`` ``(n,)``, 100 at most.
    """
    from torchvision.ops import batched_nms

    found = []
    for boxes, logits in zip(*dense_parts(outputs), strict=True):
        scores, order = logits.float().sigmoid().flatten().sort(descending=True, stable=True)
        count = min(int((scores > min_score).sum()), MOST_PLACES)
        scores, place, label = scores[:count], order[:count] // logits.shape[1], order[:count] % logits.shape[1]
        kept = batched_nms(boxes[place].float(), scores, label, overlap)[:MOST]
        found.append({"boxes": boxes[place[kept]].float(), "scores": scores[kept], "labels": label[kept]})
    return found
