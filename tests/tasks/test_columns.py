"""hf_dataset: images, texts or numbers by column, and classes, numbers or lists of labels as targets."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value
from datasets import Image as ImageFeature
from PIL import Image

from optkit.core.errors import UserError
from optkit.tasks import ColumnsTask, HubImages, TextFiles, hf_dataset, split_files

FEATURES = Features(
    image=ImageFeature(), text=Value("string"), second=Value("string"), a=Value("float32"), b=Value("float64"),
    vector=Sequence(Value("float32"), 3), label=ClassLabel(names=["even", "odd"]),
    tags=Sequence(ClassLabel(names=["p", "q", "r"])), words=Sequence(Value("string")),
)  # fmt: skip


def _rows(count):
    return Dataset.from_list(
        [
            {
                "image": Image.new("RGB", (10, 8), (n, 0, 0)), "text": f"text number {n}", "second": "another text",
                "a": float(n), "b": n / 7, "vector": [1.0, n, 2.0], "label": n % 2,
                "tags": [k for k in range(3) if n >> k & 1], "words": ["x"] * (n % 2) + ["y"],
            }
            for n in range(count)
        ],
        features=FEATURES,
    )  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    DatasetDict(train=_rows(40), val=_rows(6), test=_rows(12)).save_to_disk(str(folder))
    return str(folder)


@pytest.mark.parametrize(
    ("options", "kind", "shapes", "output_kind", "outputs"),
    [
        ({"image_column": "image", "image_size": 8}, HubImages, [(3, 8, 8)], "classes", 2),
        ({"image_column": "image", "image_size": 8, "target": "labels", "target_columns": "tags"}, ColumnsTask, [(3, 8, 8)], "labels", 3),
        ({"image_column": "image", "image_size": 8, "target": "values", "target_columns": ["a", "b"]}, ColumnsTask, [(3, 8, 8)], "values", 2),
        ({"text_columns": ["text"], "max_length": 8, "vocab_size": 512}, TextFiles, [(8,)] * 2, "classes", 2),
        ({"text_columns": ["text", "second"], "max_length": 8, "vocab_size": 512, "target": "labels", "target_columns": "words"},
         ColumnsTask, [(8,)] * 3, "labels", 2),
        ({"text_columns": ["text"], "max_length": 8, "vocab_size": 512, "target": "values", "target_columns": "a"}, ColumnsTask, [(8,)] * 2, "values", 1),
        ({"number_columns": ["a", "vector"]}, ColumnsTask, [(4,)], "classes", 2),
        ({"number_columns": ["a"], "target": "values", "target_columns": "vector"}, ColumnsTask, [(1,)], "values", 3),
    ],
)  # fmt: skip
def test_each_kind_of_input_and_target(saved, options, kind, shapes, output_kind, outputs):
    task = hf_dataset(path=saved, **options)
    assert isinstance(task, kind)
    assert [task.size(split) for split in ("train", "validation", "test")] == [40, 6, 12]
    batch = next(task.batches("train", 5))
    assert [tuple(x.shape[1:]) for x in batch.inputs] == shapes
    assert (task.output_kind, task.model_defaults()["num_classes"]) == (output_kind, outputs)
    assert len(task.model_defaults().get("inputs", shapes)) == len(shapes)
    assert task.fingerprint == hf_dataset(path=saved, **options).fingerprint
    assert task.mismatch(torch.zeros(2, outputs), 2) is None


def test_targets_are_those_of_the_rows(saved):
    def targets(**options):
        return next(hf_dataset(path=saved, number_columns=["a"], **options).batches("train", 4)).targets.tolist()

    assert targets() == [0, 1, 0, 1]
    assert targets(classes_from=["odd", "even"]) == [1, 0, 1, 0]
    assert targets(target="values", target_columns=["a", "b"]) == [pytest.approx([n, n / 7]) for n in range(4)]
    assert targets(target="labels", target_columns="tags") == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]
    reordered = targets(target="labels", target_columns="tags", classes_from=["r", "q", "p"])
    assert reordered == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]
    assert targets(target="labels", target_columns="words") == [[0, 1], [1, 1], [0, 1], [1, 1]]
    assert targets(target="labels", target_columns="words", classes_from=["y", "x"]) == [[1, 0], [1, 1], [1, 0], [1, 1]]


def test_numbers_are_scaled_by_train_and_those_that_never_vary_are_0(saved):
    task = hf_dataset(path=saved, number_columns=["vector"], target="values", target_columns="a")
    train, test = (torch.cat([b.inputs[0] for b in task.batches(split, 50)]) for split in ("train", "test"))
    numbers = np.arange(40.0)
    scaled = torch.tensor((numbers - numbers.mean()) / numbers.std()).float()
    torch.testing.assert_close(train[:, 1], scaled)
    torch.testing.assert_close(test[:, 1], scaled[:12])
    assert not train[:, [0, 2]].any()


def test_images_are_the_same_decoded_once_or_at_every_reading(saved):
    options = {"image_column": "image", "image_size": 8, "target": "values", "target_columns": "a"}
    for more in ({}, {"target": "class", "target_columns": "label"}):
        once, every = (hf_dataset(path=saved, **options | more, memory_share=share) for share in (0.5, 1e-12))
        assert once.fingerprint == every.fingerprint
        for ours, theirs in zip(once.batches("train", 16, seed=1), every.batches("train", 16, seed=1), strict=True):
            assert torch.equal(ours.inputs[0], theirs.inputs[0])
            assert torch.equal(ours.targets, theirs.targets)


def test_files_of_tables(tmp_path):
    for name, count in (("train", 30), ("test", 10)):
        lines = [f"{n},{n % 3},{n / 2}" for n in range(count)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["x,kind,y", *lines]))
    task = hf_dataset(path=str(tmp_path), number_columns=["x"], target="values", target_columns="y")
    assert next(task.batches("test", 3)).targets.tolist() == [0, 0.5, 1]
    assert hf_dataset(path=str(tmp_path), number_columns=["x"], target_columns=["kind"]).class_names == ["0", "1", "2"]


@pytest.mark.parametrize("options", [{"number_columns": ["a"]}, {"image_column": "image", "image_size": 8}])
def test_validation_is_the_test_split_of_a_hub_data_set_without_one(monkeypatch, caplog, options):
    caplog.set_level("INFO", logger="optkit")
    monkeypatch.setattr("datasets.load_dataset", lambda *_: {"train": _rows(40), "validation": _rows(6)})
    task = hf_dataset(dataset="some/id", **options)
    assert [task.size(split) for split in ("train", "validation", "test")] == [36, 4, 6]
    assert "'some/id' has no test split: validation is the test split" in caplog.text


def test_a_subset_of_the_hub_is_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "datasets.load_dataset", lambda *names: asked.append(names) or {"train": _rows(4), "test": _rows(4)}
    )
    split_files.tables_of(None, "some/id", "small")
    split_files.tables_of(None, "some/id")
    assert asked == [("some/id", "small"), ("some/id", None)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "image_column: a data set has one kind of input, and none is given"),
        ({"number_columns": ["a"], "image_column": "image"}, "one kind of input, and image_column and number_columns"),
        ({"number_columns": ["aa"]}, "task.number_columns: train has no column 'aa' .did you mean 'a'"),
        ({"number_columns": ["text"]}, "task.number_columns: train: row 0 of 'text' has no finite number: 'text number 0'"),
        ({"number_columns": ["a"], "target": "clas"}, "target: no target 'clas' .did you mean 'class'"),
        ({"number_columns": ["a"], "target": "labels"}, "task.target_columns: train: row 0 of 'label' is no list of labels: 0"),
        ({"number_columns": ["a"], "target": "values", "target_columns": "words"}, "train: row 0 of 'words' has no finite number: .'y'."),
        ({"number_columns": ["a"], "target_columns": ["a", "b"]}, "target_columns: 2 columns for target=class"),
        ({"number_columns": ["a"], "target": "labels", "target_columns": "words", "classes_from": ["y"]}, "row 1 has the label 'x', which is none of the 1"),
        ({"number_columns": ["a"], "flip": True}, "flip: only for images with one class each"),
        ({"number_columns": ["a"], "metrics": "acuracy"}, "no metric 'acuracy'"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(saved, options, message):
    with pytest.raises(UserError, match=message) as caught:
        _ = hf_dataset(path=saved, **options).fingerprint
    assert "\n" not in str(caught.value)


def test_rows_without_a_class_are_found_before_any_training(tmp_path):
    for name, labels in (("train", [0, 1] * 10), ("test", [0, 1, -1, 0])):
        rows = Dataset.from_dict({"a": [float(n) for n in range(len(labels))], "label": labels})
        rows.to_parquet(str(tmp_path / f"{name}.parquet"))
    task = hf_dataset(path=str(tmp_path), number_columns=["a"])
    with pytest.raises(UserError, match="task.test: test has the class number -1, and the output 2 classes"):
        task.mismatch(torch.zeros(2, 2), 2)


def test_no_source_and_no_folder(tmp_path):
    for options, message in (({}, "path: missing"), ({"path": str(tmp_path / "no")}, "path: no folder"),):  # fmt: skip
        for columns in ({"image_column": "image"}, {"text_columns": ["text"]}, {"number_columns": ["a"]}):
            with pytest.raises(UserError, match=message):
                hf_dataset(**options, **columns)
