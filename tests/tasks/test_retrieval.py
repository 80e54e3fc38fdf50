import math
import shutil

import numpy as np
import pytest
import torch

from optkit.core.errors import UserError
from optkit.core.metric import observed
from optkit.core.task import EMBEDDINGS
from optkit.tasks import Retrieval, supervised_contrastive_loss
from optkit.tasks.retrieval import grouped, held_out, some_classes

SMALL = {"image_size": 32, "workers": 0}


def test_classes_are_folders_and_embeddings_find_their_own(shapes):
    task = Retrieval(path=str(shapes), **SMALL)
    batch = next(iter(task.batches("test", 10)))
    assert task.class_names == ["disc", "square", "triangle"]
    assert batch.targets.tolist() == [0] * 4 + [1] * 3 + [2] * 3
    assert task.output_kind == EMBEDDINGS
    assert task.model_defaults()["num_classes"] == 64
    assert Retrieval(path=str(shapes), embedding=8, **SMALL).model_defaults()["num_classes"] == 8
    recall = task.metrics[0]
    assert recall.value(observed(recall, torch.eye(3)[batch.targets] * 7, batch)) == 1
    assert [metric.name for metric in task.metrics] == ["recall_at_1", "recall_at_5"]
    assert task.mismatch(torch.randn(2, 5), 2) is None
    assert "a vector for each, [2, size]" in task.mismatch(torch.randn(2, 5, 4, 4), 2)


def test_classes_of_test_may_be_others_than_those_of_train(shapes):
    (shapes / "test/disc").rename(shapes / "test/star")
    task = Retrieval(path=str(shapes), **SMALL)
    assert task.class_names == ["disc", "square", "star", "triangle"]
    assert set(next(iter(task.batches("test", 10))).targets.tolist()) == {1, 2, 3}


def test_training_takes_the_pictures_of_a_class_together_and_each_once(shapes):
    task = Retrieval(path=str(shapes), per_class=4, flip=False, **SMALL)
    labels = torch.cat([b.targets for b in task.batches("train", 24)])
    plain = {int(n): x for b in task.batches("train", 8) for n, x in zip(b.index, b.inputs[0], strict=True)}
    seen = []
    for batch in task.batches("train", 8, training=True, seed=5):
        assert sorted(np.bincount(batch.targets)[np.bincount(batch.targets) > 0].tolist()) in ([4, 4], [8])
        assert torch.equal(labels[batch.index], batch.targets)
        assert all(torch.equal(plain[int(n)], x) for n, x in zip(batch.index, batch.inputs[0], strict=True))
        seen += batch.index.tolist()
    assert sorted(seen) == list(range(24))
    assert seen == [n for b in task.batches("train", 8, training=True, seed=5) for n in b.index.tolist()]
    assert seen != [n for b in task.batches("train", 8, training=True, seed=6) for n in b.index.tolist()]


def test_validation_is_a_share_of_each_class(shapes):
    shutil.rmtree(shapes / "validation")
    task = Retrieval(path=str(shapes), validation_share=0.25, **SMALL)
    assert (task.size("train"), task.size("validation")) == (18, 6)
    for split, count in (("train", 6), ("validation", 2)):
        labels = torch.cat([batch.targets for batch in task.batches(split, 8)])
        assert torch.bincount(labels).tolist() == [count] * 3


def test_what_is_held_out_and_limited_leaves_pairs():
    labels = np.array([0] * 4 + [1] * 3 + [2] * 40)
    held = held_out(labels, 0.1)
    assert np.bincount(labels[held]).tolist() == [2, 0, 4]
    assert np.bincount(labels[some_classes(labels, 8)]).tolist() == [4, 2, 2]
    assert sorted(grouped(labels, 4, np.random.default_rng(0)).tolist()) == list(range(47))
    with pytest.raises(UserError, match=r"no train class has 4 images"):
        held_out(np.array([0, 0, 1, 1, 1]), 0.5)


def test_the_loss_is_equation_2_of_khosla_et_al():
    torch.manual_seed(0)
    outputs, targets = torch.randn(6, 5), torch.tensor([0, 0, 0, 1, 1, 2])
    z = (outputs / outputs.norm(dim=1, keepdim=True)).tolist()

    def alike(i, j):
        return math.exp(sum(a * b for a, b in zip(z[i], z[j], strict=True)) / 0.1)

    losses = []
    for i in range(5):  # the last has no other of its class
        same = [p for p in range(6) if p != i and targets[p] == targets[i]]
        below = sum(alike(i, a) for a in range(6) if a != i)
        losses.append(-sum(math.log(alike(i, p) / below) for p in same) / len(same))
    assert float(supervised_contrastive_loss(outputs, targets)) == pytest.approx(sum(losses) / 5, rel=1e-4)


def test_a_batch_without_pairs_has_a_loss_of_0_and_a_gradient():
    outputs = torch.randn(3, 4, requires_grad=True)
    loss = supervised_contrastive_loss(outputs, torch.arange(3))
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(outputs.grad).all()


def _alone(folder):
    for path in sorted((folder / "train/square").iterdir())[1:]:
        path.unlink()


BAD = {
    "one image": (_alone, r"task\.path: .*train/square has one image, which no other of its class can find"),
    "one class": (lambda f: [shutil.rmtree(f / f"test/{name}") for name in ("disc", "square")], r"task\.path: .*test has 1 class folders with images"),
    "no image": (lambda f: next((f / "train/disc").iterdir()).write_text("none"), r"train/disc/\d+\.png cannot be read: it is no image"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_told_of_before_anything_is_trained(shapes, case):
    change, message = BAD[case]
    change(shapes)
    with pytest.raises(UserError, match=message):
        Retrieval(path=str(shapes), **SMALL).model_defaults()


def test_wrong_options_are_told_of_at_once(shapes, tmp_path):
    for options, message in (
        ({"embedding": 0}, r"embedding: 0 is not a whole number of at least 1"),
        ({"per_class": 1}, r"per_class: 1 is not a whole number of at least 2"),
        ({"path": str(shapes / "train")}, r"path: .*train/train is not there"),
    ):
        with pytest.raises(UserError, match=message):
            Retrieval(**{"path": str(shapes)} | options)


def test_the_fingerprint_sees_classes(shapes):
    first = Retrieval(path=str(shapes), **SMALL).fingerprint
    assert Retrieval(path=str(shapes), **SMALL).fingerprint == first
    moved = next((shapes / "train/disc").iterdir())
    moved.rename(shapes / "train/square" / f"of_{moved.name}")
    assert Retrieval(path=str(shapes), **SMALL).fingerprint != first
