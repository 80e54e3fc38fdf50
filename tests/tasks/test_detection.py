import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import sigmoid_focal_loss

from optkit.core.errors import UserError
from optkit.core.metric import observed
from optkit.core.task import OTHER
from optkit.models import DenseDetector
from optkit.tasks import Detection, dense_detection_loss, detections
from optkit.tasks.dense_detection import assigned, grid

PLAIN = {"mean": [0, 0, 0], "std": [1, 1, 1], "workers": 0}


def changed(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def batch_of(task, split="test", **options):
    return next(iter(task.batches(split, 6, **options)))


def test_boxes_are_those_of_the_file(scenes):
    task = Detection(path=str(scenes), **PLAIN)
    data = json.loads((scenes / "test.json").read_text())
    batch = batch_of(task)
    for place, target in enumerate(batch.targets):
        own = [a for a in data["annotations"] if a["image_id"] == data["images"][place]["id"]]
        boxes = torch.tensor([a["bbox"] for a in own]).float()
        boxes[:, 2:] += boxes[:, :2]
        assert torch.equal(target["boxes"], boxes)
        assert target["labels"].tolist() == [a["category_id"] - 1 for a in own]
    assert task.class_names == ["disc", "square", "triangle"]
    assert task.output_kind == OTHER
    assert task.model_defaults()["num_classes"] == 3


def test_boxes_are_stretched_with_their_pictures(scenes):
    plain, stretched = (batch_of(Detection(path=str(scenes), image_size=size, **PLAIN)) for size in (None, [24, 96]))
    for before, after in zip(plain.targets, stretched.targets, strict=True):
        assert torch.equal(after["boxes"], before["boxes"] * torch.tensor([2, 0.5, 2, 0.5]))
        assert after["image_size"].tolist() == [24, 96]
    assert stretched.inputs[0].shape == (6, 3, 24, 96)


def test_a_flip_takes_the_boxes_along(scenes):
    task = Detection(path=str(scenes), **PLAIN)
    plain = {
        int(n): (x, t)
        for b in task.batches("train", 8)
        for n, x, t in zip(b.index, b.inputs[0], b.targets, strict=True)
    }
    flipped = 0
    for batch in task.batches("train", 8, training=True, seed=1):
        for index, picture, target in zip(batch.index, batch.inputs[0], batch.targets, strict=True):
            image, before = plain[int(index)]
            if torch.equal(picture, image):
                assert torch.equal(target["boxes"], before["boxes"])
                continue
            assert torch.equal(picture.flip(-1), image)
            x1, y1, x2, y2 = before["boxes"].unbind(1)
            assert torch.equal(target["boxes"], torch.stack([48 - x2, y1, 48 - x1, y2], 1))
            assert torch.equal(target["labels"], before["labels"])
            flipped += 1
    assert 4 < flipped < 20


def perfect(targets, places=30, classes=3):
    """A dense output that finds each box at two places, one of them with a little less score and overlap."""
    boxes, scores = torch.zeros(len(targets), places, 4), torch.full((len(targets), places, classes), -20.0)
    for n, target in enumerate(targets):
        for k, (box, label) in enumerate(zip(target["boxes"], target["labels"], strict=True)):
            boxes[n, 2 * k], boxes[n, 2 * k + 1] = box, box + torch.tensor([1.0, 0, 0, 0])
            scores[n, 2 * k, label], scores[n, 2 * k + 1, label] = 4.0, 3.0
    return {"boxes": boxes, "scores": scores}


def test_a_perfect_detector_has_all_precision_and_one_without_classes_less(scenes):
    task = Detection(path=str(scenes), **PLAIN)
    (metric,) = task.metrics
    batch = batch_of(task)
    output = perfect(batch.targets)
    assert metric.value(observed(metric, output, batch)) == pytest.approx(1, abs=1e-9)
    assert metric.value(observed(metric, tuple(output.values()), batch)) == pytest.approx(1, abs=1e-9)
    found = detections(output)
    assert metric.value(observed(metric, found, batch)) == pytest.approx(1, abs=1e-9)
    assert [len(one["boxes"]) for one in found] == [len(target["boxes"]) for target in batch.targets]
    mixed = output | {"scores": output["scores"].roll(1, 2)}
    assert metric.value(observed(metric, mixed, batch)) < 0.5


def test_detections_are_those_of_a_plain_search():
    torch.manual_seed(0)
    boxes = torch.rand(1, 40, 4) * 30
    boxes[..., 2:] += boxes[..., :2] + 5
    scores = torch.randn(1, 40, 2)
    (found,) = detections({"boxes": boxes, "scores": scores}, min_score=0.3, overlap=0.4)
    from torchvision.ops import box_iou

    overlaps = box_iou(boxes[0], boxes[0])
    kept: list[tuple[int, int]] = []
    order = sorted(((float(scores[0, p, k].sigmoid()), p, k) for p in range(40) for k in range(2)), reverse=True)
    for score, place, label in order:
        if score > 0.3 and all(k != label or overlaps[place, p] <= 0.4 for p, k in kept):
            kept.append((place, label))
    assert found["labels"].tolist() == [k for _, k in kept]
    assert torch.equal(found["boxes"], boxes[0, [p for p, _ in kept]])


def test_the_grid_covers_the_image():
    centers, step = grid(6, (16, 24))
    assert step == 8
    assert centers.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]
    with pytest.raises(UserError, match=r"7 places are no grid of square cells over 24x16 pixels"):
        grid(7, (16, 24))
    with torch.no_grad():
        boxes = DenseDetector(2, widths=[4, 4])(torch.zeros(1, 3, 16, 24))["boxes"][0]
    assert len(boxes) == 24
    # with equal distances to all sides a place's box is around its own centre
    assert torch.allclose((boxes[0, :2] + boxes[0, 2:]) / 2 - grid(24, (16, 24))[0][0], torch.zeros(2), atol=4)


def test_places_near_the_centre_learn_the_smallest_box_and_each_box_has_one():
    centers, step = grid(64, (64, 64))
    boxes = torch.tensor([[0.0, 0, 64, 64], [24, 24, 40, 40], [5, 5, 6, 6]])
    place, box = assigned(centers, boxes, step)
    learned = {int(p): int(b) for p, b in zip(place, box, strict=True)}
    inner = [n for n, (x, y) in enumerate(centers.tolist()) if 24 < x < 40 and 24 < y < 40]
    assert all(learned[n] == 1 for n in inner)
    assert learned[0] == 2  # no centre lies in it, and the first place is nearest
    assert set(learned.values()) == {1, 2} or 0 in learned.values()
    assert assigned(centers, boxes[:0], step)[0].numel() == 0


def test_the_loss_is_focal_loss_and_generalized_overlap_by_hand():
    torch.manual_seed(0)
    box = torch.tensor([[2.0, 2, 14, 14]])
    target = {"boxes": box, "labels": torch.tensor([1]), "image_size": torch.tensor([16, 16])}
    boxes = torch.tensor([[[0.0, 0, 8, 8], [8, 0, 16, 8], [0, 8, 8, 16], [2, 2, 14, 14]]])
    scores = torch.randn(1, 4, 2)
    found = dense_detection_loss({"boxes": boxes, "scores": scores}, [target])
    wanted = torch.zeros(1, 4, 2)
    wanted[0, :, 1] = 1  # all four centres are within 12 pixels of the middle, and in the box
    logits, p = scores, scores.sigmoid()
    cross = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    focal = (cross * (1 - torch.where(wanted == 1, p, 1 - p)) ** 2 * torch.where(wanted == 1, 0.25, 0.75)).sum()
    assert torch.allclose(focal, sigmoid_focal_loss(scores, wanted).sum())

    def generalized(a, b):
        inter = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
        around = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
        return inter / union - (around - union) / around

    overlap = sum(1 - generalized(one, box[0].tolist()) for one in boxes[0].tolist())
    assert float(found) == pytest.approx((float(focal) + overlap) / 4, rel=1e-5)


def test_crowds_teach_nothing_and_empty_pictures_only_background():
    torch.manual_seed(0)
    size = torch.tensor([16, 16])
    outputs = {"boxes": torch.rand(1, 4, 4).sort(-1).values * 16, "scores": torch.randn(1, 4, 2)}
    crowd = {
        "boxes": torch.tensor([[0.0, 0, 16, 16]]),
        "labels": torch.tensor([0]),
        "iscrowd": torch.tensor([1]),
        "image_size": size,
    }
    assert float(dense_detection_loss(outputs, [crowd])) == 0
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long), "image_size": size}
    expected = sigmoid_focal_loss(outputs["scores"], torch.zeros(1, 4, 2), reduction="sum")
    torch.testing.assert_close(dense_detection_loss(outputs, [none]), expected)


def test_a_loss_of_your_own_and_outputs_that_do_not_fit(scenes):
    def own(outputs, targets):
        return outputs["scores"].mean() + len(targets)

    task = Detection(path=str(scenes), loss=own, **PLAIN)
    batch = batch_of(task)
    output = perfect(batch.targets)
    assert float(task.loss(output, batch)) == pytest.approx(float(output["scores"].mean()) + 6)
    task = Detection(path=str(scenes), **PLAIN)
    with torch.no_grad():
        assert task.mismatch(DenseDetector(3).eval()(*task.example(2)), 2) is None
        assert "not [2, places, 4] and [2, places, 3], for 3 classes" in task.mismatch(
            DenseDetector(5)(*task.example(2)), 2
        )
    assert task.mismatch(torch.zeros(2, 3), 2) == "it gives [2, 3], not boxes and scores"
    with pytest.raises(UserError, match=r"7 places are no grid .*task\.loss=mypkg\.my_loss"):
        task.mismatch({"boxes": torch.zeros(2, 7, 4), "scores": torch.zeros(2, 7, 3)}, 2)


def test_splits_may_number_their_categories_differently(scenes):
    first = batch_of(Detection(path=str(scenes), **PLAIN)).targets

    def renumber(data):
        for category in data["categories"]:
            category["id"] = 90 - category["id"]
        for annotation in data["annotations"]:
            annotation["category_id"] = 90 - annotation["category_id"]

    changed(scenes / "test.json", renumber)
    again = batch_of(Detection(path=str(scenes), **PLAIN)).targets
    assert all(torch.equal(a["labels"], b["labels"]) for a, b in zip(first, again, strict=True))


def test_annotations_and_images_may_lie_elsewhere(scenes):
    (scenes / "labels").mkdir()
    for split in ("train", "validation", "test"):
        (scenes / f"{split}.json").rename(scenes / f"labels/instances_{split}2017.json")
        (scenes / f"{split}/images").rename(scenes / f"{split}2017")
    task = Detection(path=str(scenes), annotations="labels/instances_{split}2017.json", images="{split}2017", **PLAIN)
    assert task.size("test") == 10


def test_a_box_that_ends_within_a_pixel_outside_is_cut(scenes):
    def widen(data):
        data["annotations"][0]["bbox"] = [40.5, 40, 8, 8.25]

    changed(scenes / "test.json", widen)
    target = batch_of(Detection(path=str(scenes), **PLAIN)).targets[0]
    assert target["boxes"][0].tolist() == [40.5, 40, 48, 48]


def _set(kind, place, **values):
    return lambda data: data[kind][place].update(values)


def _drop(kind, place, name):
    return lambda data: data[kind][place].pop(name)


BAD = {
    "a box outside": (_set("annotations", 0, bbox=[40, 2, 20, 8]), r"train\.json: annotation 1: the box \[40, 2, 20, 8\] lies outside .*0000\.png, 48x48 pixels"),
    "a box before the image": (_set("annotations", 0, bbox=[-4, 2, 20, 8]), r"annotation 1: the box \[-4, 2, 20, 8\] lies outside"),
    "a box of no area": (_set("annotations", 1, bbox=[4, 2, 0, 8]), r"annotation 2: the box \[4, 2, 0, 8\] has no area"),
    "a box of three numbers": (_set("annotations", 1, bbox=[4, 2, 8]), r"annotation 2 has no box of four numbers: \[4, 2, 8\]"),
    "a box that is NaN": (_set("annotations", 1, bbox=[4, 2, float("nan"), 8]), r"annotation 2 has no box of four numbers"),
    "a box of texts": (_set("annotations", 1, bbox=["4", "2", "8", "8"]), r"annotation 2 has no box of four numbers"),
    "no box": (_drop("annotations", 1, "bbox"), r"annotation 2 has no box of four numbers: None"),
    "another image": (_set("annotations", 1, image_id=999), r"annotation 2 is of the image 999, which is not there"),
    "another category": (_set("annotations", 1, category_id=999), r"annotation 2 is of the category 999, which is not there"),
    "an image that is not there": (_set("images", 2, file_name="gone.png"), r"task\.images: .*train\.json names .*train/images/gone\.png, which is not there"),
    "an image without a name": (_drop("images", 2, "file_name"), r"image 2 has no 'file_name'"),
    "an image elsewhere": (_set("images", 2, file_name="../../test/images/0000.png"), r"names .*, which is not in .*train/images"),
    "a name that no file can have": (_set("images", 2, file_name="a" * 5000), r"task\.images: .*which is not there"),
    "an id that is a list": (_set("images", 2, id=[1]), r"image has the id \[1\] \(ids are whole numbers"),
    "an image id that is a list": (_set("annotations", 1, image_id=[1]), r"annotation 2 has the id \[1\]"),
    "a category id that is a dict": (_set("annotations", 1, category_id={}), r"annotation 2 has the id \{\}"),
    "a category with a list": (_set("categories", 1, id=[1]), r"category has the id \[1\]"),
    "a number beyond floats": (_set("annotations", 1, bbox=[10**400, 2, 8, 8]), r"annotation 2 has no box of four numbers"),
    "a crowd of words": (_set("annotations", 1, iscrowd="no"), r"annotation 2 has the iscrowd 'no' \(0 or 1"),
    "two images of an id": (_set("images", 2, id=1), r"two images of the id 1"),
    "another size": (_set("images", 2, width=96), r"0002\.png is 48x48 pixels, and .*train\.json says 96x48"),
    "two categories of a name": (_set("categories", 1, name="disc"), r"two categories of the name 'disc'"),
    "no categories": (lambda data: data.update(categories=[]), r"has no category"),
    "no list": (lambda data: data.pop("annotations"), r"has no list 'annotations'"),
    "no box at all": (lambda data: data["annotations"].clear(), r"has no box"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_annotations_are_told_of_before_anything_is_trained(scenes, case):
    change, message = BAD[case]
    changed(scenes / "train.json", change)
    with pytest.raises(UserError, match=message):
        Detection(path=str(scenes)).model_defaults()


def test_other_bad_files(scenes):
    changed(scenes / "test.json", _set("categories", 0, name="disk"))
    with pytest.raises(UserError, match=r"test\.json has the class 'disk', which train has not \(did you mean 'disc'"):
        Detection(path=str(scenes)).model_defaults()
    (scenes / "test.json").write_text("{")
    with pytest.raises(UserError, match=r"task\.annotations: cannot read .*test\.json"):
        Detection(path=str(scenes)).model_defaults()
    (scenes / "test.json").unlink()
    with pytest.raises(UserError, match=r"annotations: .*test\.json is not there"):
        Detection(path=str(scenes))


def test_wrong_options_are_told_of_at_once(scenes):
    for options, message in (
        ({"min_score": 1.5}, r"min_score: 1\.5 is not a share"),
        ({"overlap": 0}, r"overlap: 0 is not a share"),
        ({"images": "{split}/photos"}, r"images: .*train/photos is not there"),
        ({"loss": "optkit.tasks.no_such_loss"}, r"loss: 'optkit\.tasks' has no 'no_such_loss'"),
    ):
        with pytest.raises(UserError, match=message):
            Detection(path=str(scenes), **options)


def test_the_fingerprint_sees_boxes(scenes):
    first = Detection(path=str(scenes)).fingerprint
    assert Detection(path=str(scenes)).fingerprint == first
    changed(scenes / "train.json", _set("annotations", 0, bbox=[1, 1, 9, 9]))
    assert Detection(path=str(scenes)).fingerprint != first
    assert np.array(Image.open(scenes / "train/images/0000.png")).shape == (48, 48, 3)
