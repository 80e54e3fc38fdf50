"""Texts that are continued: files, tokens, bytes, and what is refused."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset

from optkit.core.errors import UserError
from optkit.tasks import DocstringsLM, Language
from optkit.tasks.language.docstrings import CHARACTERS
from optkit.tasks.language.documents import Documents
from optkit.tasks.language.tokenizing import in_chunks, tokenized
from optkit.tasks.tokens import END, load_tokenizer, trained_on_documents

WORDS = "the heron stood in cold water — and a small grey fish, Ünder it, did not move at all".split()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "cache"))


def _documents(count, seed=0):
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(5, 40))) for _ in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a tokenizer that puts a token before each text, as Llama's does."""
    from tokenizers import processors

    tokenizer = trained_on_documents(_documents(50), "a test's", 512)
    backend = tokenizer.hf.backend_tokenizer
    mark = [(END, backend.token_to_id(END))]
    backend.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=mark)
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.hf.save_pretrained(str(path))
    return path


def _write(path, name, documents, kind):
    file = path / f"{name}.{kind}"
    if kind == "txt":
        file.write_text("\n".join(documents), encoding="utf-8")
        return
    data = Dataset.from_list([{"text": text} for text in documents])
    {"parquet": data.to_parquet, "csv": data.to_csv, "jsonl": data.to_json}[kind](str(file))


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_tokens_are_those_of_the_joined_text(tmp_path, folder, kind):
    train, test = _documents(30), ["", *_documents(6, 1)]
    _write(tmp_path, "train", train, kind)
    _write(tmp_path, "test", test, kind)
    task = Language(path=str(tmp_path), tokenizer=str(folder), protocol="blocks-16", train_length=8)
    expected = task._tokenizer.hf("\n\n".join(test))["input_ids"]
    assert expected[0] == task._tokenizer.hf.eos_token_id
    batch = next(task.batches("test", 1000))
    assert batch.inputs[0].flatten().tolist() == expected[: len(expected) // 16 * 16]
    assert batch.targets[:, 0].tolist() == [-1] * len(batch)
    assert torch.equal(batch.targets[:, 1:], batch.inputs[0][:, 1:])
    assert next(task.batches("train", 4)).inputs[0].shape == (4, 8)
    assert task.facts()["documents"] == {"train": 27, "validation": 3, "test": 7}
    again = Language(path=str(tmp_path), tokenizer=str(folder), protocol="blocks-16", train_length=8)
    assert again.fingerprint == task.fingerprint


def test_lines_are_documents_as_in_wikitext_or_a_file_is_one(tmp_path, folder):
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text("one\n \ntwo\n" * 20)
    options = {"path": str(tmp_path), "tokenizer": str(folder), "protocol": "blocks-8"}
    task = Language(**options, lines=True)
    assert list(task._documents["test"].texts[:3]) == ["one\n", "", "two\n"]
    (tmp_path / "test.txt").write_text("one\x0cand\u2028a half\x85\ntwo")
    assert list(Language(**options, lines=True)._documents["test"].texts) == ["one\x0cand\u2028a half\x85\n", "two"]
    (tmp_path / "test.txt").write_text("one\n \ntwo\n" * 20)
    assert Language(**options)._documents["test"].texts == ["one\n \ntwo\n" * 20]
    train, validation = (Language(**options)._documents[name].texts[0] for name in ("train", "validation"))
    assert train + validation == "one\n \ntwo\n" * 20


def test_a_text_in_chunks_has_the_tokens_of_the_whole(folder):
    tokenizer = load_tokenizer(str(folder))
    text = "\n\n".join(_documents(200))
    plain = tokenizer.hf(text, add_special_tokens=False)["input_ids"]
    for chunk, overlap in ((1500, 800), (3000, 50)):
        parts = list(in_chunks([text[:100], text[100:]], tokenizer, chunk, overlap))
        assert np.concatenate([tokens for tokens, _ in parts]).tolist() == plain
        assert sum(sizes.sum() for _, sizes in parts) == len(text.encode())
    assert len(list(in_chunks([text], tokenizer, 1500, 800))) > 5


def test_bytes_are_of_the_text_and_not_of_marks(folder):
    texts = _documents(5)
    alone = tokenized(Documents.of(texts), load_tokenizer(str(folder)), None)
    parts = np.split(alone.sizes, alone.ends[:-1])
    assert [part.sum() for part in parts] == [len(text.encode()) for text in texts]
    assert [part[0] for part in parts] == [0] * 5
    joined = tokenized(Documents.of(texts), load_tokenizer(str(folder)), END, END)
    assert joined.sizes.sum() == sum(len(text.encode()) for text in texts)


def test_without_a_tokenizer_one_is_learned_that_ends_documents(tmp_path):
    _write(tmp_path, "train", _documents(60), "jsonl")
    _write(tmp_path, "test", ["The Heron stood.", "in Cold water"] * 8, "jsonl")
    task = Language(path=str(tmp_path), vocab_size=512, protocol="blocks-16")
    tokens = task._texts["test"].tokens
    assert task._tokenizer.hf.decode(tokens).startswith(f"The Heron stood.{END}in Cold water{END}The")
    assert (tokens == task._tokenizer.hf.eos_token_id).sum() == 15
    assert task.facts()["joined_by"] == END
    assert task.model_defaults() == {"vocab_size": len(task._tokenizer), "pad_token_id": 0, "max_length": 16}


def test_without_a_test_split_validation_is_the_test_split(tmp_path, folder):
    _write(tmp_path, "train", _documents(30), "jsonl")
    _write(tmp_path, "validation", _documents(8, 1), "jsonl")
    task = Language(path=str(tmp_path), tokenizer=str(folder), protocol="blocks-8")
    assert task.facts()["documents"] == {"train": 27, "validation": 3, "test": 8}


def test_train_may_be_the_validation_file_and_the_record_says_so(tmp_path, folder):
    for name in ("validation", "test"):
        _write(tmp_path, name, _documents(8, len(name)), "jsonl")
    options = {"path": str(tmp_path), "tokenizer": str(folder), "protocol": "blocks-8"}
    with pytest.raises(UserError, match=r"has no train split.*task\.train=FILE, which for calibration"):
        Language(**options)
    task = Language(**options, train=str(tmp_path / "validation.jsonl"))
    assert task.facts()["train_is_validation"] is True
    with pytest.raises(UserError, match="train and test are the same file"):
        Language(**options, train=str(tmp_path / "test.jsonl"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "block-8"}, "protocol: no protocol 'block-8'"),
        ({"protocol": "blocks-4096"}, r"train_length: the train split has \d+ tokens, fewer than one block of 4096"),
        ({"protocol": "blocks-4096", "train_length": 8}, "protocol: the validation split has"),
        ({"text_column": "texts"}, "text_column: train has no column 'texts'.*did you mean 'text'"),
        ({"text_column": "number"}, "'number' holds int64, and no texts"),
        ({"test": "missing.txt"}, "no file missing.txt"),
        ({"choices": "missing.jsonl"}, "no file missing.jsonl"),
        ({"path": None}, r"task\.path=DIR, task\.train=FILE and task\.test=FILE, or task\.dataset=ID"),
    ],
)
def test_mistakes_are_one_line(tmp_path, folder, options, message):
    for name in ("train", "test"):
        rows = [{"text": text, "number": 1} for text in _documents(20)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=message):
        Language(**({"path": str(tmp_path), "tokenizer": str(folder)} | options)).fingerprint  # noqa: B018


def test_texts_without_text_are_refused(tmp_path, folder):
    _write(tmp_path, "train", _documents(20), "jsonl")
    _write(tmp_path, "test", ["", " \n"], "jsonl")
    task = Language(path=str(tmp_path), tokenizer=str(folder), protocol="blocks-8")
    with pytest.raises(UserError, match="all 2 documents of the test split are empty"):
        task.fingerprint  # noqa: B018


def test_embedded_documents_are_of_files_of_their_own(monkeypatch):
    monkeypatch.setattr("optkit.tasks.language.docstrings.CHARACTERS", dict.fromkeys(CHARACTERS, 6000))
    found = DocstringsLM()._documents
    texts = [text for name in ("train", "validation", "test") for text in found[name].texts]
    assert len(set(texts)) == len({text[:200] for text in texts}) == len(texts) >= 9
