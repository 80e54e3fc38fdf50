"""Distilling on examples without labels, beside those that have them."""

import csv
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from optkit.core.errors import UserError
from optkit.core.task import NO_LABEL, POOL, SealedTask
from optkit.distill import Distillation
from optkit.engines import Eager
from optkit.models import ModelSpec
from optkit.prune import StructuredPruning
from optkit.recipe.plan import make_plan
from optkit.recipe.recipe import Recipe
from optkit.tasks import HubImages, ImageFolder, TextFiles
from optkit.training import Train, Trainer

SPEC = ModelSpec("optkit.models.SmallCNN", {"num_classes": 2, "in_channels": 3, "widths": [8]})
TRAINER = Trainer(epochs=2, batch_size=8, lr=0.01, precision="fp32")


@pytest.fixture
def unlabelled(image_folder, tmp_path):
    """19 more images, and one that is a test image, in folders of any depth."""
    random = np.random.default_rng(1)
    folder = tmp_path / "more" / "deep"
    folder.mkdir(parents=True)
    for n in range(19):
        Image.fromarray(random.integers(0, 255, (10, 12, 3)).astype(np.uint8)).save(folder / f"{n}.png")
    Image.open(image_folder / "test" / "cat" / "0.png").save(folder.parent / "copied.png")
    return folder.parent


@pytest.fixture
def task(image_folder, unlabelled):
    options = {"image_size": 8, "validation_share": 0.25, "crop": 1}
    return ImageFolder(path=str(image_folder), unlabelled=str(unlabelled), **options)


def _texts(folder, splits):
    folder.mkdir()
    for split, rows in splits.items():
        with (folder / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    return folder


def test_the_pool_is_train_and_behind_it_what_has_no_label_and_is_not_held_out(task, image_folder):
    alone = ImageFolder(path=str(image_folder), image_size=8, validation_share=0.25, crop=1)
    assert (task.size("train"), task.size(POOL), alone.size(POOL)) == (18, 18 + 19, 18)
    facts = task.facts()
    assert facts["examples"] == {"train": 18, "validation": 6, "test": 8, "unlabelled": 19}
    assert facts["unlabelled_left_out"] == 1
    assert task.fingerprint == alone.fingerprint
    assert (task.pool_fingerprint, alone.pool_fingerprint) == (facts["pool_fingerprint"], None)
    (batch,) = task.batches(POOL, 100)
    (train,) = task.batches("train", 100)
    assert torch.equal(batch.inputs[0][:18], train.inputs[0])
    assert torch.equal(batch.targets[:18], train.targets)
    assert set(batch.targets[18:].tolist()) == {NO_LABEL}
    assert len({x.numpy().tobytes() for x in batch.inputs[0]}) == 18 + 19


def test_the_loss_is_the_mean_over_those_that_have_a_label(task):
    (batch,) = task.batches(POOL, 100)
    logits = torch.randn(len(batch), 2, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(logits[:18], batch.targets[:18])
    torch.testing.assert_close(task.loss(logits, batch), expected)
    (gradient,) = torch.autograd.grad(task.loss(logits, batch), logits)
    assert not gradient[18:].any()
    batch.targets = torch.full_like(batch.targets, NO_LABEL)
    assert task.loss(logits, batch) == 0


def _apply(stage, context, tmp_path, task):
    ctx = context(max_steps=None)
    for name, value in {
        "workdir": tmp_path, "baseline": lambda: SPEC.build(3).eval(), "task": SealedTask(task),
    }.items():  # fmt: skip
        object.__setattr__(ctx, name, value)
    return stage.apply(SPEC.build(1).eval(), ctx)


@pytest.mark.parametrize("cached_views", [None, 1])
def test_distillation_trains_on_the_pool_and_training_does_not(task, context, tmp_path, monkeypatch, cached_views):
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "cache"))
    seen = {"distill": set(), "train": set()}
    real = type(task).forward
    for name, stage in (
        ("distill", Distillation(cached_views=cached_views, trainer=TRAINER)),
        ("train", Train(TRAINER)),
    ):

        def forward(self, module, batch, name=name):
            seen[name] |= set(batch.index.tolist())
            return real(self, module, batch)

        monkeypatch.setattr(type(task), "forward", forward)
        (tmp_path / name).mkdir()
        steps = _apply(stage, context, tmp_path / name, task).facts["training"]["steps"]
        assert steps == (2 * 5 if name == "distill" else 2 * 3)
    assert seen == {"distill": set(range(37)), "train": set(range(18))}


def test_a_loss_that_needs_the_right_classes_is_refused(task):
    with pytest.raises(UserError, match="dkd needs the right classes, which the 19 unlabelled examples have not"):
        Distillation(losses={"dkd": 1}).check(SPEC.build(1).eval(), SealedTask(task))


def test_texts_without_labels(tmp_path):
    rows = [["text", "label"], *([f"a {word} day", str(n % 2)] for n, word in enumerate("good bad fine sad".split()))]
    folder = _texts(tmp_path / "texts", {"train": rows * 3, "validation": rows, "test": [*rows[:1], ["the end", "1"]]})
    more = _texts(tmp_path / "more", {"some": [["text"], ["the end"], ["no label here"], ["nor here"]]})
    shutil.copy(more / "some.csv", tmp_path / "UPPER.CSV")
    for place in (more, more / "some.csv", tmp_path / "UPPER.CSV"):
        task = TextFiles(path=str(folder), unlabelled=str(place), vocab_size=512, max_length=16)
        assert task.size(POOL) == task.size("train") + 2
        assert task.facts()["unlabelled_left_out"] == 1
        (batch,) = task.batches(POOL, 100)
        assert batch.targets[-2:].tolist() == [NO_LABEL] * 2
        assert batch.inputs[1][-2:].sum(-1).tolist() == [task._split(POOL).lengths[n] for n in (-2, -1)]


def test_files_of_two_kinds_are_refused(tmp_path):
    rows = [["text", "label"], ["one", "0"], ["two", "1"]]
    folder = _texts(tmp_path / "texts", {"train": rows, "test": rows})
    (folder / "more.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"unlabelled: .* holds \.csv and \.jsonl files"):
        TextFiles(path=str(folder), unlabelled=str(folder))


def test_parquet_images_without_labels(image_folder, unlabelled, tmp_path):
    for split in ("train", "test"):
        files = [(f, n) for n, c in enumerate(("cat", "dog")) for f in sorted((image_folder / split / c).iterdir())]
        rows = {"image": [{"bytes": f.read_bytes()} for f, _ in files], "label": [n for _, n in files]}
        Dataset.from_dict(rows).to_parquet(tmp_path / f"{split}.parquet")
    more = tmp_path / "unlabelled.parquet"
    rows = {"image": [{"bytes": f.read_bytes()} for f in sorted(unlabelled.rglob("*.png"))]}
    Dataset.from_dict(rows).to_parquet(more)
    task = HubImages(dataset="none", path=str(tmp_path), unlabelled=str(more), validation_share=0.25)
    assert task.size(POOL) == 18 + 19


def test_what_the_other_splits_hold_is_not_taken_twice(image_folder, tmp_path):
    with pytest.raises(UserError, match="all 32 examples are in the other splits as well"):
        _ = ImageFolder(path=str(image_folder), image_size=8, unlabelled=str(image_folder)).size(POOL)
    (tmp_path / "twice").mkdir()
    for n in range(2):
        Image.new("RGB", (12, 10), "red").save(tmp_path / "twice" / f"{n}.png")
    task = ImageFolder(path=str(image_folder), image_size=8, unlabelled=str(tmp_path / "twice"))
    assert task.size(POOL) == task.size("train") + 1


def test_only_what_sees_the_pool_is_another_variant_for_it(task, image_folder):
    alone = ImageFolder(path=str(image_folder), image_size=8, validation_share=0.25, crop=1)
    ids = []
    for data in (alone, task):
        recipe = Recipe(
            name="r",
            model={"_target_": SPEC.target, "widths": [8], "num_classes": None, "in_channels": None},
            task=data,
            chain=["train", "steps", "distill"],
            stages={
                "train": Train(TRAINER),
                "steps": StructuredPruning(0.5, steps=2, training=Distillation(trainer=TRAINER)),
                "distill": Distillation(trainer=TRAINER),
            },
            engines={"eager": Eager()},
            reference=Eager(),
            text="name: r\n",
        )
        ids.append([step.id for step in make_plan(recipe).steps])
    assert [a == b for a, b in zip(*ids, strict=True)] == [True, True, False, False]


def test_steps_count_the_pool(task, context, tmp_path):
    stage = StructuredPruning(0.5, steps=2, between=0.5, training=Distillation(trainer=TRAINER))
    facts = _apply(stage, context, tmp_path, task).facts
    assert [step["training"]["steps"] for step in facts["steps"]] == [5, 10]


@pytest.mark.parametrize("place", ["nowhere", "images/train/cat/0.txt"])
def test_a_place_without_examples_is_named(image_folder, tmp_path, place):
    with pytest.raises(UserError, match="unlabelled: no examples in"):
        ImageFolder(path=str(image_folder), unlabelled=str(tmp_path / place))
