import logging

import pytest

from optkit.core.errors import UserError
from optkit.tasks import TextFiles
from optkit.tasks.split_names import find_tables

KINDS = (".parquet", ".csv", ".jsonl")


def _touch(folder, *names):
    for name in names:
        (folder / name).write_text("")
    return folder


def _found(folder):
    return {split: [file.name for file in files] for split, files in find_tables(folder, KINDS).items()}


@pytest.mark.parametrize(
    "names",
    [
        ["train.parquet"],
        ["train.CSV"],
        ["train_0.csv", "train_1.csv", "train_10.csv"],
        ["train-1.csv", "train-2.csv"],
        ["train.001.csv"],
        ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
        ["train-00001-of-00002.csv", "train-00002-of-00002.csv"],
        ["train-00000-of-00001-a09b74b3ef9c3b56.parquet"],
    ],
)
def test_a_split_is_one_file_or_numbered_files(tmp_path, names):
    assert _found(_touch(tmp_path, *names)) == {"train": sorted(names)}


@pytest.mark.parametrize(
    "name",
    [
        "train_backup.csv", "train_old_2.csv", "train2.csv", "train copy.csv", "train (1).csv", "training.csv", "trainer_0.csv",
        "train-00000-of-00001-mine.csv", "my_train.csv", ".train.csv", "._train.csv", "train.csv.bak", "Train.csv",
    ],
)  # fmt: skip
def test_what_only_looks_like_a_split_is_not_read(tmp_path, name):
    assert _found(_touch(tmp_path, "train.csv", "test.csv", name)) == {"train": ["train.csv"], "test": ["test.csv"]}


@pytest.mark.parametrize("name", ["validation", "valid", "val", "dev"])
def test_validation_has_four_names(tmp_path, name):
    assert _found(_touch(tmp_path, f"{name}.csv", "validity.csv", "devil_0.csv")) == {"validation": [f"{name}.csv"]}


def test_the_first_kind_of_which_there_are_files_counts(tmp_path):
    assert _found(_touch(tmp_path, "train.csv", "train_0.jsonl", "train.parquet")) == {"train": ["train.parquet"]}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train.csv", "train_0.csv"], "train.csv and train_0.csv may hold the same examples"),
        (["train_0.csv", "train-0.csv"], "train has several files of the number 0"),
        (["train-00000-of-00003.csv", "train-00002-of-00003.csv"], "train has 2 of the 3 files"),
        (["train-00001-of-00002.csv"], "train has 1 of the 2 files"),
        (["train-00000-of-00001.csv", "train-00001-of-00002.csv"], "train has 2 of the 2 files.*from elsewhere"),
        (["train-00000-of-00002.csv", "train-1.csv"], "train has 2 of the 2 files.*from elsewhere"),
        (["val.csv", "dev.csv"], "the validation split is there as val and as dev"),
    ],
)
def test_files_that_may_be_there_twice_or_are_missing_are_refused(tmp_path, names, message):
    with pytest.raises(UserError, match=f"task.path: .*{message}"):
        _found(_touch(tmp_path, *names))


def test_a_backup_beside_train_is_named_and_leaks_into_no_split(tmp_path, caplog):
    rows = "".join(f"text {n},{n % 2}\n" for n in range(20))
    for name, text in (("train", rows), ("train_backup", rows), ("test", "a,0\nb,1\n"), ("test.jsonl_old", "")):
        (tmp_path / f"{name}.csv").write_text("text,label\n" + text)
    with caplog.at_level(logging.WARNING):
        task = TextFiles(path=str(tmp_path), vocab_size=512, max_length=16)
        assert (task.size("train"), task.size("validation"), task.size("test")) == (18, 2, 2)
    said = [record.getMessage() for record in caplog.records if "is not read" in record.getMessage()]
    assert [line.partition(" ")[0] for line in said] == [
        str(tmp_path / "train_backup.csv"), str(tmp_path / "test.jsonl_old.csv"),
    ]  # fmt: skip


def test_a_missing_split_names_what_is_almost_one(tmp_path):
    _touch(tmp_path, "train_clean.csv", "test.csv")
    with pytest.raises(UserError, match="has no train split.*needs train.*and has train_clean.csv"):
        TextFiles(path=str(tmp_path))
