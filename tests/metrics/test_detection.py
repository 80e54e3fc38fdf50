"""Mean average precision of boxes against pycocotools' own accumulation."""

import contextlib
import io

import numpy as np
import pytest
import torch

from optkit.core.errors import UserError
from optkit.core.task import Batch
from optkit.metrics.detection import CocoMAP

pytest.importorskip("pycocotools")
CLASSES = 4


def _scenes(count, seed=0):
    """Targets of images and detections of them: some missed, some shifted, some of another class, some of nothing."""
    random = np.random.default_rng(seed)

    def boxes(n):
        corner = random.uniform(0, 200, (n, 2))
        return np.concatenate([corner, corner + random.uniform(5, 80, (n, 2))], 1)

    targets, detections = [], []
    for _ in range(count):
        there, n = boxes(m := int(random.integers(0, 8))), int(random.integers(0, 4))
        labels, kept = random.choice(CLASSES, m, p=[0.5, 0.3, 0.15, 0.05]), random.random(m) < 0.8
        near = there[kept] + random.normal(0, 4, (int(kept.sum()), 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        named = np.where(random.random(len(near)) < 0.9, labels[kept], random.integers(0, CLASSES, len(near)))
        targets.append({"boxes": there, "labels": labels, "iscrowd": (random.random(m) < 0.1).astype(int)})
        detections.append(
            {
                "boxes": np.concatenate([near, boxes(n)]),
                "labels": np.concatenate([named, random.integers(0, CLASSES, n)]),
                "scores": np.concatenate([random.beta(5, 2, len(near)), random.beta(2, 5, n)]),
            }
        )
    as_tensors = [
        [{k: torch.as_tensor(v) for k, v in image.items()} for image in side] for side in (detections, targets)
    ]
    return as_tensors[0], as_tensors[1]


def _batch(targets):
    return Batch((torch.zeros(len(targets)),), targets, torch.arange(len(targets)))


def _by_pycocotools(detections, targets):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def listed(images, key, name):
        found = []
        for number, image in enumerate(images):
            for (x1, y1, x2, y2), label, extra in zip(image["boxes"], image["labels"], image[name], strict=True):
                box = [float(v) for v in (x1, y1, x2 - x1, y2 - y1)]
                found.append(
                    {"id": len(found) + 1, "image_id": number, "category_id": int(label), "bbox": box,
                     "area": box[2] * box[3], key: extra.item()}
                )  # fmt: skip
        return found

    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for listing in (listed(targets, "iscrowd", "iscrowd"), listed(detections, "score", "scores")):
            sides.append(COCO())
            images, categories = [{"id": i} for i in range(len(targets))], [{"id": k} for k in range(CLASSES)]
            sides[-1].dataset = {"images": images, "categories": categories, "annotations": listing}
            sides[-1].createIndex()
        judge = COCOeval(*sides, iouType="bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge.stats[0]


@pytest.mark.parametrize("seed", range(3))
def test_map_is_that_of_pycocotools(seed):
    detections, targets = _scenes(40, seed)
    metric = CocoMAP(CLASSES)
    table = np.concatenate(
        [metric.observe(detections[i : i + 16], _batch(targets[i : i + 16])) for i in range(0, 40, 16)]
    )
    assert metric.value(table) == pytest.approx(_by_pycocotools(detections, targets), abs=1e-9)
    interval = metric.interval(table)
    assert interval.low < interval.value < interval.high


def test_padded_tensors_are_detections_too():
    detections, targets = _scenes(6)
    most = max(len(image["scores"]) for image in detections)
    padded = tuple(
        torch.stack([torch.nn.functional.pad(d[k], (0, 0, 0, most - len(d[k])) if k == "boxes" else (0, most - len(d[k])))
                     for d in detections]) for k in ("boxes", "scores", "labels")
    )  # fmt: skip
    metric = CocoMAP(CLASSES)
    assert np.array_equal(metric.observe(padded, _batch(targets)), metric.observe(detections, _batch(targets)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([9])}, "label 9, and there are 4"),
        ({"boxes": torch.tensor([[5, 5, 1, 9]])}, "ends before"),
    ],
)
def test_boxes_that_are_none_are_refused(change, message):
    targets = [{"boxes": torch.tensor([[0, 0, 5, 5]]), "labels": torch.tensor([0])} | change]
    nothing = [{"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=int)}]
    with pytest.raises(UserError, match=message):
        CocoMAP(CLASSES).observe(nothing, _batch(targets))
