"""Metrics of boxes: mean average precision by COCO's definition."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optkit.core.errors import UserError
from optkit.core.extras import need
from optkit.core.metric import MetricOfWeights
from optkit.core.ratios import quotient_or_zero
from optkit.core.task import Batch

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of the overlap of a detection and a box
RECALLS = np.linspace(0, 1, 101)
MOST = 100  # detections of an image that count, the best first
FIELDS = 4  # of a detection in a table: class, score, and the thresholds it is right and ignored at, as bits


@dataclass(frozen=True)
class CocoMAP(MetricOfWeights):
    """Mean over classes and ten overlaps (0.5 to 0.95) of average precision at 101 recalls (Lin et al., 2014).

    pycocotools matches detections with boxes of any area. The matches of an image do not depend on other images, so a
    table of them is enough to compute the metric of any images.

    Attributes:
        classes: how many there are; labels are from 0.
    """

    classes: int
    name = "map"
    groups: ClassVar[int] = 200

    def observe(self, output: Any, batch: Batch) -> NDArray[np.float64]:
        """``(N, 400 + classes)``: up to 100 detections of four fields each, and the boxes of each class.

        Args:
            output: for each image a mapping with ``boxes`` ``(n, 4)`` as x1, y1, x2, y2, ``scores`` ``(n,)`` and
                ``labels`` ``(n,)``; or a tuple of these three with a leading axis of images, where a score of 0 or
                below marks a place without a detection.
            batch: for each image a mapping with ``boxes`` and ``labels``, and ``iscrowd`` where there are crowds.

        Raises:
            UserError: pycocotools is not installed, or boxes that are none.
        """
        found = [_best(image) for image in _images(output)]
        if len(found) != len(batch):
            message = f"the model gives detections of {len(found)} images for a batch of {len(batch)}"
            raise UserError(message, key="task.metrics", fix="one mapping of boxes, scores and labels for each image")
        table = np.zeros((len(found), MOST * FIELDS + self.classes))
        for row, detections, targets in zip(table, found, batch.targets, strict=True):
            self._fill(row, detections, _boxes(targets, self.classes))
        return table

    def weighted(self, table: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        detections = table[:, : MOST * FIELDS].reshape(len(table), MOST, FIELDS)
        image, place = np.nonzero(detections[..., 1] > 0)
        label, score, right, ignored = detections[image, place].T
        boxes = weights @ table[:, MOST * FIELDS :]
        total, there = np.zeros(len(weights)), np.zeros(len(weights))
        for k in range(self.classes):
            if not table[:, MOST * FIELDS + k].any():
                continue
            chosen = np.flatnonzero(label == k)
            chosen = chosen[np.argsort(-score[chosen], kind="stable")]
            right_at, ignored_at = (x[chosen].astype(np.int64) for x in (right, ignored))
            step = max(1, 2_000_000 // max(len(chosen), 1))
            for start in range(0, len(weights), step):
                draws = slice(start, start + step)
                known = boxes[draws, k] > 0
                found = _average_precision(weights[draws][:, image[chosen]], right_at, ignored_at, boxes[draws, k])
                total[draws] += np.where(known, found, 0.0)
                there[draws] += known
        return quotient_or_zero(total, there)

    def _fill(self, row: NDArray[np.float64], found: dict[str, NDArray], targets: dict[str, NDArray]) -> None:
        """An image's row: its detections, matched by pycocotools, and its boxes of each class that are no crowd."""
        counted = targets["labels"][targets["iscrowd"] == 0]
        row[MOST * FIELDS :] = np.bincount(counted, minlength=self.classes)
        at = 0
        for match in _matched(found, targets):
            right = (match["dtMatches"] > 0) & ~match["dtIgnore"]
            bits = 2 ** np.arange(len(THRESHOLDS))
            for score, is_right, is_ignored in zip(match["dtScores"], right.T, match["dtIgnore"].T, strict=True):
                row[at : at + FIELDS] = match["category_id"], score, is_right @ bits, is_ignored @ bits
                at += FIELDS


def _average_precision(
    weights: NDArray[np.float64], right: NDArray[np.int64], ignored: NDArray[np.int64], boxes: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mean over overlaps of the precision at 101 recalls, of detections in order; ``(draws, n)`` to ``(draws,)``."""
    total = np.zeros(len(weights))
    for bit in range(len(THRESHOLDS)):
        is_right, counts = (right >> bit) & 1, ((ignored >> bit) & 1) == 0
        hits = np.cumsum(weights * is_right, axis=1)
        recall = quotient_or_zero(hits, boxes[:, None])
        precision = quotient_or_zero(hits, np.cumsum(weights * counts, axis=1))
        # at each recall the best precision that is reached there or later
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        for draw in range(len(weights)):
            places = np.searchsorted(recall[draw], RECALLS, side="left")
            reached = places < best.shape[1]
            total[draw] += best[draw, places[reached]].sum() / len(RECALLS)
    return total / len(THRESHOLDS)


def _images(output: Any) -> list[Mapping[str, Tensor]]:
    if isinstance(output, Sequence) and output and isinstance(output[0], Mapping):
        return list(output)
    boxes, scores, labels = (
        (output[name] for name in ("boxes", "scores", "labels")) if isinstance(output, Mapping) else output
    )
    return [
        {"boxes": b[s > 0], "scores": s[s > 0], "labels": k[s > 0]}
        for b, s, k in zip(boxes, scores, labels, strict=True)
    ]


def _best(image: Mapping[str, Tensor]) -> dict[str, NDArray]:
    """The detections of an image that count, as arrays."""
    order = torch.argsort(image["scores"], descending=True, stable=True)[:MOST]
    return {name: image[name][order].detach().cpu().numpy() for name in ("boxes", "scores", "labels")}


def _boxes(targets: Mapping[str, Tensor], classes: int) -> dict[str, NDArray]:
    found = {name: torch.as_tensor(targets[name]).cpu().numpy() for name in ("boxes", "labels")}
    if ((found["labels"] < 0) | (found["labels"] >= classes)).any():
        raise UserError(
            f"a box has the label {found['labels'].max()}, and there are {classes} classes", key="task.metrics"
        )
    if (found["boxes"].reshape(-1, 4)[:, 2:] < found["boxes"].reshape(-1, 4)[:, :2]).any():
        raise UserError("a box ends before it begins", key="task.metrics", fix="give boxes as x1, y1, x2, y2")
    crowds = targets.get("iscrowd")
    found["iscrowd"] = np.zeros(len(found["labels"]), int) if crowds is None else torch.as_tensor(crowds).cpu().numpy()
    return found


def _matched(found: dict[str, NDArray], targets: dict[str, NDArray]) -> list[dict[str, Any]]:
    """pycocotools' matches of one image's detections with its boxes, of each class that has either."""
    need("detection", "mean average precision of boxes", key="task.metrics")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    labels = sorted({*found["labels"].tolist(), *targets["labels"].tolist()})
    if not labels:
        return []
    categories = [{"id": int(k)} for k in labels]
    annotations = [
        _annotation(n, b, k) | {"iscrowd": int(c)}
        for n, (b, k, c) in enumerate(zip(targets["boxes"], targets["labels"], targets["iscrowd"], strict=True), 1)
    ]
    detections = [
        _annotation(n, b, k) | {"score": float(s)}
        for n, (b, k, s) in enumerate(zip(found["boxes"], found["labels"], found["scores"], strict=True), 1)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for listed in (annotations, detections):
            side = COCO()
            side.dataset = {"images": [{"id": 1}], "categories": categories, "annotations": listed}
            side.createIndex()
            sides.append(side)
        judge = COCOeval(*sides, iouType="bbox")
        judge.params.iouThrs, judge.params.areaRng, judge.params.maxDets = THRESHOLDS, [[0, 1e10]], [MOST]
        judge.evaluate()
    return [match for match in judge.evalImgs if match is not None]


def _annotation(number: int, box: NDArray, label: int) -> dict[str, Any]:
    x1, y1, x2, y2 = map(float, box)
    width, height = x2 - x1, y2 - y1
    return {
        "id": number, "image_id": 1, "category_id": int(label), "bbox": [x1, y1, width, height], "area": width * height,
    }  # fmt: skip
