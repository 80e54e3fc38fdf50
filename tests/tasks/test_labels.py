import json
import logging

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from optkit.core.errors import UserError
from optkit.tasks import TextFiles
from optkit.tasks.labels import numbered, read_labels
from optkit.tasks.split_files import Table


def _table(labels, names=None, is_text=False):
    kind = ClassLabel(names=names) if names else None
    features = Features(label=kind) if kind else None
    return Table(Dataset.from_dict({"label": labels}, features=features), "key", is_text)


def _numbered(classes_from=None, **splits):
    tables = {name: table if isinstance(table, Table) else _table(table) for name, table in splits.items()}
    numbers, classes = numbered(tables, read_labels(tables, "label"), "label", classes_from)
    assert all(found.dtype == np.int64 for found in numbers.values())
    return {name: found.tolist() for name, found in numbers.items()}, classes


def test_splits_whose_files_name_the_classes_in_another_order_are_read_by_name():
    found, classes = _numbered(
        train=_table([0, 1, 1], ["neg", "pos"]),
        validation=_table([0, 1], ["pos", "neg"]),
        test=_table([1], ["pos", "neg", "x"]),
    )
    assert found == {"train": [0, 1, 1], "validation": [1, 0], "test": [0]}
    assert classes == ["neg", "pos"]


def test_a_class_that_train_does_not_name_is_refused():
    with pytest.raises(UserError, match="test has the label 'negative', which is none of the classes .*neg"):
        _numbered(train=_table([0, 1], ["neg", "pos"]), test=_table([0], ["negative", "positive"]))


@pytest.mark.parametrize(
    ("classes_from", "train", "classes"),
    [
        (None, [0, 1], ["neg", "pos"]),
        (["neg", "pos"], [0, 1], ["neg", "pos"]),
        (["pos", "neg"], [1, 0], ["pos", "neg"]),  # the same names in another order
        (["pos", "other", "neg"], [2, 0], ["pos", "other", "neg"]),
        (["bad", "good"], [0, 1], ["bad", "good"]),  # other names for them
    ],
)
def test_classes_from_orders_or_renames_what_files_name(classes_from, train, classes):
    found, given = _numbered(classes_from, train=_table([0, 1], ["neg", "pos"]), test=_table([0], ["pos", "neg"]))
    assert (found["train"], found["test"], given) == (train, [train[1]], classes)


def test_classes_from_that_has_some_of_the_files_names_is_refused():
    with pytest.raises(UserError, match="classes_from: it has 'pos', but not 'neg'"):
        _numbered(["pos", "negative"], train=_table([0, 1], ["neg", "pos"]), test=[0])


@pytest.mark.parametrize(("named", "plain"), [("train", "test"), ("test", "train")])
def test_plain_numbers_and_names_beside_class_names_mean_these_classes(named, plain):
    splits = {named: _table([0, 1], ["b", "a"]), plain: [1, 0]}
    assert _numbered(**splits) == ({named: [0, 1], plain: [1, 0]}, ["b", "a"])
    assert _numbered(train=splits[named], test=["a", "b"]) == ({"train": [0, 1], "test": [1, 0]}, ["b", "a"])


@pytest.mark.parametrize("values", [[10, 200_000], [1, 4], [2.0, 3.0], [5]])
def test_numbers_that_are_not_0_to_k_count_in_ascending_order_and_the_log_says_so(values, caplog):
    with caplog.at_level(logging.WARNING):
        found, classes = _numbered(train=[*values, values[0]], test=[values[-1]])
    assert found == {"train": [*range(len(values)), 0], "test": [len(values) - 1]}
    assert classes == [str(int(value)) for value in values]
    assert "the labels in 'label' are no 0 to K - 1" in caplog.text


def test_numbers_from_0_on_are_what_they_are(caplog):
    assert _numbered(train=[2, 0, 1], test=[1]) == ({"train": [2, 0, 1], "test": [1]}, ["0", "1", "2"])
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ([0, 2], [0, 2]),  # one of the classes is not there
        ([1, 2, 3], [0, 1, 2]),  # from 1 on, as many as there are names
        ([1, 3], [1, 3]),  # cannot be told: the check of the task refuses it
    ],
)
def test_numbers_under_given_names(labels, found):
    assert _numbered(["a", "b", "c"], train=labels, test=labels)[0]["train"] == found


def test_a_number_that_train_has_not_is_a_class_and_is_named(caplog):
    with caplog.at_level(logging.WARNING):
        assert _numbered(train=[0, 1], test=[0, 2])[1] == ["0", "1", "2"]
    assert "no train example has a label of 2, which other splits have" in caplog.text


@pytest.mark.parametrize("hidden", [-1, -100])
def test_a_negative_number_stays_no_label(hidden):
    assert _numbered(train=[0, 1], test=[hidden])[0]["test"] == [hidden]
    assert _numbered(train=_table([0, 1], ["a", "b"]), test=_table([-1], ["a", "b"]))[0]["test"] == [-1]


def test_numbers_and_names_of_the_same_classes_agree():
    assert _numbered(train=[10, 20], test=["20", "10"]) == ({"train": [0, 1], "test": [1, 0]}, ["10", "20"])
    assert _numbered(train=["10", "9", "many"], test=[9, 10]) == (
        {"train": [0, 1, 2], "test": [1, 0]},
        ["10", "9", "many"],
    )


@pytest.mark.parametrize(
    ("train", "test", "found", "classes"),
    [
        (["0", "10", "2"], ["2"], [2], ["0", "10", "2"]),
        (["0", "1", "2"], ["2"], [2], ["0", "1", "2"]),
        (["1", "2", "many"], ["1", "2"], [0, 1], ["1", "2", "many"]),
        (["01", "2"], ["1"], [0], ["1", "2"]),
    ],
)
def test_cells_of_a_csv_are_numbers_if_all_splits_have_numbers(train, test, found, classes):
    got = _numbered(train=_table(train, is_text=True), test=_table(test, is_text=True))
    if classes == ["0", "10", "2"]:  # as numbers, these are in ascending order
        found, classes = [1], ["0", "2", "10"]
    assert (got[0]["test"], got[1]) == (found, classes)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, None], "train has 1 of 2 rows without a label, row 1 first"),
        (["a", ""], "train has 1 of 2 rows without a label, row 1 first"),
        ([0.5, 1.0], "the label 0.5, which is no class number"),
        ([float("nan"), 1.0], "the label nan, which is no class number"),
        ([[0], [1]], r"the label \[0\], which is no class number"),
        ([b"a", b"b"], "the label b'a', which is no class number"),
    ],
)
def test_what_is_no_label_is_named(labels, message):
    with pytest.raises(UserError, match=message):
        _numbered(train=labels, test=[0])


def test_a_name_that_train_has_not_is_refused():
    with pytest.raises(
        UserError, match="test has the label 'birds', which is none of the classes .did you mean 'bird'"
    ):
        _numbered(train=["bird", "cat"], test=["cat", "birds"])


def test_a_class_that_is_named_twice_is_refused():
    with pytest.raises(UserError, match="classes_from: it has 'a' twice"):
        _numbered(["a", "b", "a"], train=[0, 1], test=[0])


def _write(folder, **splits):
    for name, rows in splits.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return TextFiles(path=str(folder), vocab_size=512, max_length=16, validation_share=0.5)


def test_numbers_and_names_in_one_json_column_keep_their_names(tmp_path):
    rows = [{"text": f"text {n}", "label": 1 if n % 2 else "x"} for n in range(8)]
    task = _write(tmp_path, train=rows, test=rows)
    assert task.classes == ["1", "x"]
    assert task._read[0]["test"].labels.tolist() == [1, 0] * 4


def test_the_record_says_which_labels_the_class_numbers_stand_for(tmp_path):
    rows = [{"text": f"text {n}", "label": 200_000 if n % 2 else 10} for n in range(8)]
    task = _write(tmp_path, train=rows, test=rows)
    assert task.facts()["label_values"] == [10, 200_000]
    assert task.model_defaults()["num_classes"] == 2
    rows = [{"text": f"text {n}", "label": n % 2} for n in range(8)]
    assert "label_values" not in _write(tmp_path, train=rows, test=rows).facts()


def _parquet(folder, name, labels, names):
    features = Features(text=Value("string"), label=ClassLabel(names=names))
    rows = {"text": [f"text {n}" for n in range(len(labels))], "label": labels}
    Dataset.from_dict(rows, features=features).to_parquet(folder / f"{name}.parquet")


def test_parquet_splits_under_another_order_of_names_are_read_by_name(tmp_path):
    _parquet(tmp_path, "train", [0, 1] * 10, ["neg", "pos"])
    _parquet(tmp_path, "test", [0, 0, 1], ["pos", "neg"])
    task = TextFiles(path=str(tmp_path), vocab_size=512, max_length=16)
    assert next(task.batches("test", 3)).targets.tolist() == [1, 1, 0]


def test_files_of_one_split_under_another_order_of_names_are_refused(tmp_path):
    _parquet(tmp_path, "train-0", [0, 1] * 10, ["neg", "pos"])
    _parquet(tmp_path, "train-1", [0, 1] * 10, ["pos", "neg"])
    _parquet(tmp_path, "test", [0, 1], ["pos", "neg"])
    with pytest.raises(UserError, match="train-1.parquet and train-0.parquet name the classes of 'label' in another"):
        _ = TextFiles(path=str(tmp_path)).fingerprint


def test_two_validation_splits_of_the_hub_are_refused(monkeypatch):
    table = Dataset.from_dict({"text": ["a"], "label": [0]})
    monkeypatch.setattr("datasets.load_dataset", lambda *_: {"train": table, "validation": table, "dev": table})
    with pytest.raises(UserError, match="the validation split is there as validation and as dev"):
        _ = TextFiles(dataset="some/id").fingerprint
