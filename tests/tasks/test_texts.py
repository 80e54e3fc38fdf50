import json
from importlib import metadata

import numpy as np
import pytest
import torch
from datasets import Dataset

from optkit.core.errors import UserError
from optkit.tasks import Docstrings, TextFiles, docstrings, tokens
from optkit.tasks.passages import passages
from optkit.tasks.texts import Padding, Texts
from optkit.tasks.tokens import tokenize_once, trained_tokenizer

GOOD, BAD = "a warm and funny film", "dull"


def _write(folder, name, rows, kind="parquet"):
    data = Dataset.from_list(rows)
    path = folder / f"{name}.{kind}"
    {"parquet": data.to_parquet, "csv": data.to_csv, "json": data.to_json}[kind](str(path))


def _rows(count, **extra):
    return [{"sentence": f"{GOOD if n % 2 else BAD} {n}", "label": n % 2} | extra for n in range(count)]


def _folder(tmp_path, kind="parquet", **splits):
    for name, rows in ({"train": _rows(20), "test": _rows(6)} | splits).items():
        _write(tmp_path, name, rows, kind)
    return tmp_path


def _task(folder, **options):
    return TextFiles(
        **({"path": str(folder), "text_columns": ["sentence"], "vocab_size": 512, "max_length": 16} | options)
    )


@pytest.mark.parametrize("kind", ["parquet", "csv", "json"])
def test_local_files_of_each_kind_give_the_same_task(tmp_path, kind):
    task = _task(_folder(tmp_path, kind))
    assert (task.size("train"), task.size("validation"), task.size("test")) == (18, 2, 6)
    assert task.classes == ["0", "1"]
    batch = next(task.batches("test", 6))
    assert batch.targets.tolist() == [0, 1] * 3
    decoded = [task._tokenizer.hf.decode(ids, skip_special_tokens=True).strip() for ids in batch.inputs[0]]
    assert decoded == [row["sentence"] for row in _rows(6)]


def test_batches_under_a_seed_are_a_sample_padded_as_in_measuring(tmp_path):
    rows = [{"sentence": f"text {n}", "label": n // 20} for n in range(40)]
    task = _task(_folder(tmp_path, train=rows, validation=rows))
    found, again, other = (next(task.batches("train", 8, seed=seed)) for seed in (1, 1, 2))
    assert set(next(task.batches("train", 8)).targets.tolist()) == {0}
    assert set(found.targets.tolist()) == {0, 1}
    assert torch.equal(found.index, again.index)
    assert not torch.equal(found.index, other.index)
    assert found.inputs[0].shape == (8, 16)


def test_class_names_as_labels_are_numbered_alphabetically_and_the_same_in_every_split(tmp_path):
    train = [{"sentence": f"text {n}", "label": "yes" if n % 3 else "no"} for n in range(30)]
    task = _task(_folder(tmp_path, train=train, test=[{"sentence": "text", "label": "yes"}]))
    assert task.classes == ["no", "yes"]
    assert next(task.batches("test", 1)).targets.tolist() == [1]


def test_padding_is_to_the_batch_in_training_and_to_the_length_else(tmp_path):
    task = _task(_folder(tmp_path), max_length=32)
    for split, training in (("train", True), ("train", False), ("test", False)):
        for batch in task.batches(split, 4, training=training):
            ids, mask = batch.inputs
            lengths = task._split(split).lengths[batch.index.numpy()]
            assert ids.shape == mask.shape == (4 if len(batch) == 4 else len(batch), ids.shape[1])
            assert ids.shape[1] == (-(-max(lengths) // 8) * 8 if training else 32)
            assert mask.sum(1).tolist() == lengths.tolist()
            assert (ids[mask == 0] == task._tokenizer.padding).all()
    assert [x.shape for x in task.example(3)] == [(3, 32)] * 2
    assert task.conditions() == {"sequence_length": 32}


def test_pairs_say_which_text_a_token_is_of(tmp_path):
    rows = [{"one": "a b c", "two": f"d {n}", "label": n % 2} for n in range(20)]
    task = _task(_folder(tmp_path, train=rows, test=rows[:4]), text_columns=["one", "two"])
    assert task.model_defaults()["inputs"] == ["input_ids", "attention_mask", "token_type_ids"]
    ids, mask, kinds = next(task.batches("test", 4)).inputs
    sep = task._tokenizer.hf.sep_token_id
    for row in range(4):
        first = ids[row].tolist().index(sep)
        assert kinds[row, : first + 1].sum() == 0
        assert kinds[row, first + 1 : mask[row].sum()].all()
        assert not kinds[row, mask[row].sum() :].any()


def test_texts_cut_short_are_counted(tmp_path):
    test = [{"sentence": " ".join(["dull"] * n), "label": n % 2} for n in (1, 2, 50, 51)]
    task = _task(_folder(tmp_path, test=test), max_length=8)
    assert task.facts()["truncated_share"]["test"] == 0.5
    assert task._split("test").lengths.max() == 8


def test_texts_are_tokenized_once_and_again_when_they_change(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "cache"))
    made = []
    real = tokens._tokenize_to
    monkeypatch.setattr(tokens, "_tokenize_to", lambda *a: made.append(a) or real(*a))
    first = _task(_folder(tmp_path)).fingerprint
    assert len(made) == 3
    assert _task(tmp_path).fingerprint == first
    assert len(made) == 3
    _folder(tmp_path, test=_rows(8))
    assert _task(tmp_path).fingerprint != first
    assert len(made) == 4
    assert _task(tmp_path, max_length=9).fingerprint not in (first, _task(tmp_path).fingerprint)


def test_a_test_split_without_labels_gives_way_to_validation(tmp_path):
    hidden = [row | {"label": -1} for row in _rows(4)]
    task = _task(_folder(tmp_path, test=hidden, validation=_rows(10)))
    assert (task.size("train"), task.size("validation"), task.size("test")) == (18, 2, 10)


def test_empty_texts_are_kept_and_counted(tmp_path):
    test = [{"sentence": text, "label": 0} for text in ("", "  ", "a film", None)]
    task = _task(_folder(tmp_path, test=test))
    assert task.facts()["empty_texts"] == {"train": 0, "validation": 0, "test": 3}
    assert next(task.batches("test", 4)).inputs[1].sum(1).tolist()[::3] == [2, 2]  # their marks alone


def test_an_empty_cell_of_a_csv_file_is_an_empty_text(tmp_path):
    test = [{"sentence": "", "label": 0}, {"sentence": "a film", "label": 1}]
    assert _task(_folder(tmp_path, "csv", test=test)).facts()["empty_texts"]["test"] == 1


def test_the_same_task_at_another_length(tmp_path):
    task = _task(_folder(tmp_path))
    short = task.at_length(8)
    assert task.at_length(16) is task
    assert [x.shape for x in short.example(3)] == [(3, 8)] * 2
    assert short.conditions() == {"sequence_length": 8}
    assert short._tokenizer is task._tokenizer
    assert [x.shape for x in short.encode(0, 4)] == [(4, 8)] * 2
    texts = _rows(20)
    decoded = [task._tokenizer.hf.decode(ids, skip_special_tokens=True).strip() for ids in task.encode(0, 2)[0]]
    assert set(decoded) <= {row["sentence"] for row in texts}


@pytest.mark.parametrize(
    ("splits", "options", "message"),
    [
        ({}, {"text_columns": ["sentense"]}, "text_columns: train has no column 'sentense'.*did you mean 'sentence'"),
        ({}, {"label_column": "labels"}, "did you mean 'label'"),
        ({}, {"classes_from": ["a"]}, "label 1.*classes_from"),
        ({}, {"text_columns": ["label"]}, "row 0 of 'label' is no text"),
        ({"test": [{"sentence": "x", "label": 0.5}]}, {}, "test has the label 0.5, which is no class number"),
        ({"test": [{"sentence": "x", "label": 0}, {"sentence": "y", "label": None}]}, {},
         "label_column: test has 1 of 2 rows without a label, row 1 first"),
        ({"train": [*_rows(20), {"sentence": "x", "label": 2}]}, {}, "train has one example of the class '2'"),
        ({}, {"text_columns": []}, "not a list of one or two columns"),
        ({}, {"tokenizer": "some/id"}, "no tokenizer at 'some/id'.*task.tokenizer=DIR"),
        ({}, {"max_length": 4}, "max_length"),
        ({"test": [{"sentence": "x", "label": -1}]}, {}, "test has examples without a label"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path, splits, options, message):
    with pytest.raises(UserError, match=message) as caught:
        _ = _task(_folder(tmp_path, **splits), **options).fingerprint
    assert "\n" not in str(caught.value)


def test_no_files_and_no_network_are_clear_errors(tmp_path):
    with pytest.raises(UserError, match="has no train split.*csv"):
        _task(tmp_path)
    with pytest.raises(UserError, match="set task.path=DIR"):
        TextFiles()
    with pytest.raises(UserError, match="cannot load 'some/id'.*task.path=DIR"):
        _ = TextFiles(dataset="some/id").fingerprint


def test_a_learned_tokenizer_is_the_same_again(tmp_path, monkeypatch):
    texts = Texts(([f"some text of {n} words, über" for n in range(50)],), np.zeros(50, np.int64))
    digests = []
    for attempt in range(2):
        monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / str(attempt)))
        digests.append(trained_tokenizer(texts, 512).digest)
    assert digests[0] == digests[1]


def test_padding_alone():
    texts = Texts((["one two three", "one"],), np.array([0, 1]))
    split = tokenize_once(texts, trained_tokenizer(texts, 512), 16, "texts")
    whole = Padding(16, 0, kinds=False)(split, [0, 1])
    short = Padding(16, 0, kinds=False, shrink=True)(split, [1])
    assert torch.equal(whole[0][1:, : short[0].shape[1]], short[0])
    part = split.subset(np.array([1]))
    assert torch.equal(Padding(16, 0, kinds=False)(part, [0])[0], whole[0][1:])
    assert part.digest() != split.digest()


SOURCE = '''
"""Numpy makes arrays of numbers, and so does np.

    >>> code, which is left out

Args:
    x: {described}
"""
import not_to_be_imported

def f():
    """Calls :func:`numpy.sum` or ``np`` for
    you. {described}"""

def g():
    """Too few words for a passage."""
'''


def test_passages_are_forty_words_of_one_docstring_with_the_names_masked_and_nothing_is_imported(tmp_path):
    file = tmp_path / "module.py"
    words = [f"w{n}" for n in range(40)]
    file.write_text(SOURCE.replace("{described}", " ".join(words)))
    found = list(passages(file, "numpy|np", "library"))
    opening = "library makes arrays of numbers, and so does library. Args: x:".split()
    assert [text for _, text in found] == [
        " ".join([*opening, *words[: 40 - len(opening)]]),
        " ".join(["Calls", "library.sum", "or", "library", "for", "you.", *words[:34]]),
    ]
    assert found[0][0] == "library makes arrays of numbers and so does"
    file.write_text("not Python (")
    assert list(passages(file, "numpy", "library")) == []


@pytest.fixture
def few_docstrings(monkeypatch):
    monkeypatch.setattr(docstrings, "LIBRARIES", {n: docstrings.LIBRARIES[n] for n in ("networkx", "stdlib")})
    monkeypatch.setattr(docstrings, "COUNTS", {"test": 10, "validation": 5, "train": 20})


def test_docstrings_are_balanced_unique_masked_and_split_by_module(few_docstrings, monkeypatch):
    by_module = {}
    real = docstrings.passages

    def spied(module, names, masked):
        for opening, text in real(module, names, masked):
            by_module.setdefault(text, module)
            yield opening, text

    monkeypatch.setattr(docstrings, "passages", spied)
    monkeypatch.setattr(docstrings, "FORMAT", "a test")
    task = Docstrings(vocab_size=512)
    texts, classes = task.read()
    assert classes == ["networkx", "stdlib"]
    for split, count in (("train", 20), ("validation", 5), ("test", 10)):
        assert np.bincount(texts[split].labels).tolist() == [count, count]
    everything = [text for split in texts.values() for text in split.columns[0]]
    assert len({" ".join(text.lower().split()[:8]) for text in everything}) == len(everything)
    assert not any("networkx" in text.lower() or "python" in text.lower() for text in everything)
    used = {split: {by_module[text] for text in texts[split].columns[0]} for split in texts}
    assert not used["train"] & used["test"]
    assert not used["train"] & used["validation"]
    assert not used["validation"] & used["test"]


def test_docstrings_are_the_same_again_and_say_where_they_are_from(few_docstrings, tmp_path, monkeypatch):
    first = Docstrings(vocab_size=512)
    facts = first.facts()
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path))
    assert Docstrings(vocab_size=512).fingerprint == first.fingerprint == facts["fingerprint"]
    assert facts["sources"]["networkx"] == metadata.version("networkx")
    json.dumps(facts)


def _wordy(kinds=True):
    """A tokenizer whose words are tokens, with its own marks, and of pairs with three marks between and around."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"[PAD]": 0, "[C]": 1, "[S]": 2} | {f"w{n}": n + 3 for n in range(50)}))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = [("[C]", 1), ("[S]", 2)]
    backend.post_processor = processors.TemplateProcessing(
        single="[C] $A [S]", pair="[C] $A [S] [S] $B:1 [S]:1", special_tokens=marks
    )
    names = ["input_ids", "attention_mask"] + ["token_type_ids"] * kinds
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", model_input_names=names)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pairs", [False, True])
def test_texts_are_cut_as_the_tokenizers_library_cuts_them(pairs, side):
    hf = _wordy()
    hf.truncation_side = side
    texts = [" ".join(f"w{n}" for n in range(first, first + count)) for first in (0, 20) for count in range(12)]
    columns = tuple(zip(*((a, b) for a in texts[:12] for b in texts[12:]), strict=True)) if pairs else (texts[:12],)
    texts = Texts(tuple(list(column) for column in columns), np.zeros(len(columns[0]), dtype=np.int64))
    for length in (8, 9, 10, 11, 13, 20, 30):
        split = tokens.tokenize(texts, tokens.Tokenizer(hf, "d"), length)
        theirs = hf(*columns, truncation=True, max_length=length, padding=False).encodings
        assert split.lengths.tolist() == [len(e.ids) for e in theirs]
        assert split.tokens.tolist() == [token for e in theirs for token in e.ids]
        assert split.kinds.tolist() == [kind for e in theirs for kind in e.type_ids]
        assert split.truncated.tolist() == [bool(e.overflowing) for e in theirs]


def test_long_pairs_take_the_memory_of_their_texts(tmp_path, monkeypatch):
    """Of each pair the library would cut off and keep 25 million pieces."""
    words = " ".join(f"w{n % 10}" for n in range(30_000))
    texts = Texts(([words] * 6, [words] * 6), np.zeros(6, dtype=np.int64))
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path))
    sizes = []
    real = tokens.tokenize
    monkeypatch.setattr(tokens, "tokenize", lambda part, *rest: sizes.append(len(part)) or real(part, *rest))
    split = tokenize_once(texts, tokens.Tokenizer(_wordy(kinds=False), "long"), 16, "train")
    assert sizes == [5, 1]  # at most a million characters at once
    assert split.lengths.tolist() == [16] * 6
    assert split.tokens[:16].tolist() == [1, *range(3, 9), 2, 2, *range(3, 9), 2]
    assert not split.kinds.any()
    assert split.truncated.all()
