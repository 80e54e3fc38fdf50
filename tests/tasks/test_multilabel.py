import csv

import pytest
import torch

from optkit.core.errors import UserError
from optkit.core.metric import observed
from optkit.core.task import LABELS
from optkit.metrics.multilabel import MultilabelF1, MultilabelMAP
from optkit.tasks import Multilabel

SHAPES = ["disc", "square", "triangle"]
COLUMNS = {"label_columns": SHAPES, "image_size": 32, "workers": 0}
LISTS = {"list_column": "shapes", "image_size": 32, "workers": 0}


def edit(path, row, **cells):
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[row].update(cells)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)


def test_columns_and_lists_give_the_same_labels(scenes):
    by_columns, by_lists = Multilabel(path=str(scenes), **COLUMNS), Multilabel(path=str(scenes), **LISTS)
    with (scenes / "test.csv").open(newline="") as file:
        expected = [[float(row[shape]) for shape in SHAPES] for row in csv.DictReader(file)]
    for task in (by_columns, by_lists):
        batch = next(iter(task.batches("test", 10)))
        assert batch.targets.tolist() == expected
        assert batch.inputs[0].shape == (10, 3, 32, 32)
        assert task.class_names == SHAPES
        assert task.output_kind == LABELS
        assert task.metrics == (MultilabelF1(3), MultilabelMAP(3))
        assert task.model_defaults()["num_classes"] == 3
    assert by_columns.fingerprint == by_lists.fingerprint


def test_labels_from_gives_another_order_and_an_empty_list_none(scenes):
    edit(scenes / "test.csv", 0, shapes="")
    task = Multilabel(path=str(scenes), labels_from=SHAPES[::-1], **LISTS)
    batch, other = (next(iter(t.batches("test", 10))) for t in (task, Multilabel(path=str(scenes), **LISTS)))
    assert torch.equal(batch.targets, other.targets.flip(1))
    assert batch.targets[0].tolist() == [0, 0, 0]


def test_the_loss_is_that_of_each_label_and_a_right_model_has_all_points(scenes):
    task = Multilabel(path=str(scenes), **COLUMNS)
    batch = next(iter(task.batches("test", 10)))
    logits = torch.randn(10, 3)
    p = logits.sigmoid()
    by_hand = -(batch.targets * p.log() + (1 - batch.targets) * (1 - p).log()).mean()
    torch.testing.assert_close(task.loss(logits, batch), by_hand)
    for metric in task.metrics:
        assert metric.value(observed(metric, 20 * batch.targets - 10, batch)) == 1
    assert task.mismatch(torch.zeros(2, 3), 2) is None
    with pytest.raises(UserError, match=r"task\.loss: the model gives \[2, 4\] for targets \[2, 3\]"):
        task.mismatch(torch.zeros(2, 4), 2)


BAD = {
    "a cell that is not 0 or 1": (COLUMNS, {"square": "2"}, r"task\.label_columns: train: row 3 of 'square' is '2', not 0 or 1"),
    "an empty cell": (COLUMNS, {"square": ""}, r"train: row 3 of 'square' is None, not 0 or 1"),
    "a text": (COLUMNS, {"square": "yes"}, r"train: row 3 of 'square' is 'yes', not 0 or 1"),
    "a file that is not there": (COLUMNS, {"file": "gone.png"}, r"task\.file_column: train: row 3 of 'file' names .*gone\.png, which is not there"),
    "a file elsewhere": (COLUMNS, {"file": "train/../../outside.png"}, r"train: row 3 of 'file' names .*outside\.png, which is not in "),
    "no file": (LISTS, {"file": ""}, r"train: row 3 of 'file' names nothing, which is not there"),
    "a label that there is not": (LISTS | {"labels_from": SHAPES}, {"shapes": "disk"}, r"task\.list_column: train: row 3 has the label 'disk', .*did you mean 'disc'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_cells_are_told_of_before_anything_is_trained(scenes, case):
    options, cells, message = BAD[case]
    (scenes.parent / "outside.png").write_bytes((scenes / "train/images/0000.png").read_bytes())
    edit(scenes / "train.csv", 3, **cells)
    with pytest.raises(UserError, match=message):
        Multilabel(path=str(scenes), **options).model_defaults()


def test_a_label_that_no_example_has_cannot_be_learned(scenes):
    for row in range(24):
        edit(scenes / "train.csv", row, disc="0")
    with pytest.raises(UserError, match=r"no train example has the label 'disc'"):
        Multilabel(path=str(scenes), **COLUMNS).model_defaults()


def test_a_label_that_only_test_has_is_named(scenes):
    edit(scenes / "test.csv", 1, shapes="disc;star")
    with pytest.raises(UserError, match=r"test: row 1 has the label 'star', which is none of the labels"):
        Multilabel(path=str(scenes), **LISTS).model_defaults()


def test_wrong_options_are_told_of_at_once(scenes, tmp_path):
    for options, message in (
        ({}, r"label_columns: labels are given neither way"),
        ({"label_columns": ["disc"], "list_column": "shapes"}, r"label_columns: labels are given both ways"),
        ({"label_columns": ["disc", "disc"]}, r"label_columns: it has 'disc' twice"),
        ({"list_column": "shapes", "separator": ""}, r"separator: it is empty"),
        (
            {"list_column": "shapes", "image_size": [32, 48]},
            r"image_size: \[32, 48\] is no size of a picture \(8 to 4096\)",
        ),
        ({"list_column": "shapes", "path": str(tmp_path)}, r"path: .* has no train split"),
    ):
        with pytest.raises(UserError, match=message):
            Multilabel(**{"path": str(scenes)} | options)
    with pytest.raises(UserError, match=r"task\.label_columns: train has no column 'dics' \(did you mean 'disc'"):
        Multilabel(path=str(scenes), label_columns=["dics"]).model_defaults()
