"""Scores of choices are those of a plain loop over the model, alone and beside perplexity."""

import copy
import json

import pytest
import torch

from optkit.core.errors import UserError
from optkit.core.stage import Context
from optkit.core.task import TOKENS_AT_ONCE, SealedTask, model_inputs, rows_at_once
from optkit.core.variant import Variant
from optkit.engines.eager import Eager
from optkit.measure.quality import measure_quality
from optkit.models import language_model
from optkit.prune import DepthPruning, MagnitudePruning
from optkit.quantize import WeightOnlyQuantization
from optkit.tasks import Language, MultipleChoice
from optkit.tasks.tokens import trained_on_documents

TEXTS = ["the heron stood in the cold water", "a small grey fish did not move at all", "the water was cold"] * 60
QUESTIONS = [
    {"context": "the heron stood", "choices": ["in the water", "fish"], "answer": 0},
    {"context": "a small grey", "choices": ["fish", "heron at all", "did not move"], "answer": 2},
    {"context": "", "choices": ["the water was cold", "water"], "answer": 1},
    {"context": "did not ", "choices": ["move", "cold", "stood in the cold"], "answer": 0},
    {"context": "the heron stood in the cold water " * 6, "choices": ["grey", "all"], "answer": 1},
]
LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tokenizer, and a folder of questions and texts."""
    folder = tmp_path_factory.mktemp("questions")
    trained_on_documents(TEXTS, "questions", 512).hf.save_pretrained(str(folder / "tokenizer"))
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(q) + "\n" for q in QUESTIONS))
        (folder / "texts" / f"{name}.txt").parent.mkdir(exist_ok=True)
        (folder / "texts" / f"{name}.txt").write_text("\n".join(TEXTS))
    return folder


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    module = language_model(config=LLAMA, vocab_size=600)
    for parameter in module.parameters():  # or all choices are alike
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return module


def _loop(module, hf, question):
    """Log-likelihoods of choices by one forward pass each."""
    found = []
    for choice in question["choices"]:
        context = question["context"].rstrip()
        both = hf(f"{question['context']} {choice}")["input_ids"]
        if context:
            start = len(hf(context)["input_ids"])
        else:
            both, start = [hf.bos_token_id, *both], 1
        both, start = both[-33:], start - max(0, len(both) - 33)
        with torch.no_grad():
            logs = module(torch.tensor([both[:-1]]))[0].log_softmax(-1)
        found.append(sum(float(logs[n - 1, both[n]]) for n in range(start, len(both))))
    return found


@pytest.mark.parametrize("batch_size", [1, 3])
def test_scores_are_those_of_a_loop_and_so_are_the_figures(made, model, batch_size):
    task = MultipleChoice(path=str(made), tokenizer=str(made / "tokenizer"), max_length=32)
    scores = torch.cat([task.forward(model, batch) for batch in task.batches("test", batch_size)])
    expected = [_loop(model, task._tokenizer.hf, question) for question in QUESTIONS]
    for row, of_question in zip(scores, expected, strict=True):
        assert row[: len(of_question)].tolist() == pytest.approx(of_question, rel=1e-4)
        assert torch.isinf(row[len(of_question) :]).all()
    session = Eager().compile(model, Variant("v", None, frozenset({"float"}), {}), task.example(batch_size))
    acc, acc_norm = measure_quality(session, task, "test", batch_size, {})
    right = [max(range(len(s)), key=s.__getitem__) == q["answer"] for s, q in zip(expected, QUESTIONS, strict=True)]
    normalized = [
        [x / len(c) for x, c in zip(s, q["choices"], strict=True)] for s, q in zip(expected, QUESTIONS, strict=True)
    ]
    right_norm = [
        max(range(len(s)), key=s.__getitem__) == q["answer"] for s, q in zip(normalized, QUESTIONS, strict=True)
    ]
    assert (acc.value, acc_norm.value) == (sum(right) / 5, sum(right_norm) / 5)
    assert acc.quality.primary
    assert not acc_norm.quality.primary


def test_the_loss_is_of_the_right_choice_and_can_be_trained_on(made, model):
    task = MultipleChoice(path=str(made), tokenizer=str(made / "tokenizer"), max_length=32)
    batch = next(task.batches("test", 2))
    loss = task.loss(task.forward(model, batch), batch)
    expected = [_loop(model, task._tokenizer.hf, q)[q["answer"]] for q in QUESTIONS[:2]]
    tokens = int((batch.targets["next"][[0, 1], batch.targets["answer"]] >= 0).sum())
    assert loss.item() == pytest.approx(-sum(expected) / tokens, rel=1e-4)
    loss.backward()
    assert (task.size("train"), task.size("validation")) == (4, 1)


@pytest.mark.parametrize(
    "stage",
    [
        WeightOnlyQuantization(bits=4, group_size=16, rounding="gptq", batches=2),
        MagnitudePruning(0.5, criterion="wanda"),
        DepthPruning(keep=1, amount=None, by="influence"),
    ],
    ids=["gptq", "wanda", "influence"],
)
def test_stages_that_read_inputs_get_the_contexts_with_their_right_choices(made, model, tmp_path, stage):
    task = MultipleChoice(path=str(made), tokenizer=str(made / "tokenizer"), max_length=32)
    batch = next(task.batches("test", 5))
    (read,) = model_inputs(SealedTask(task), batch)
    right = [batch.inputs[0][n, q["answer"]] for n, q in enumerate(QUESTIONS)]
    assert read.tolist() == [row[: read.shape[1]].tolist() for row in right]
    (first,) = model_inputs(SealedTask(task), batch.subset(slice(0, 1)))
    assert task._tokenizer.hf.decode(first[0]).split() == ["the", "heron", "stood", "in", "the"]  # "water" is scored
    context = Context(
        task=SealedTask(task), variant=Variant("id", None, frozenset({"float"}), {}), baseline=lambda: model,
        build_model=lambda node: model, seed=0, device=torch.device("cpu"), workdir=tmp_path,
    )  # fmt: skip
    outcome = stage.apply(copy.deepcopy(model), context)
    batch = next(task.batches("test", 2))
    assert not torch.equal(task.forward(outcome.module, batch), task.forward(model, batch))


def test_few_questions_are_judged_at_a_time_where_their_logits_are_large(made):
    task = MultipleChoice(path=str(made), tokenizer=str(made / "tokenizer"), max_length=32)
    assert rows_at_once(SealedTask(task), 10**6) == TOKENS_AT_ONCE // task.length


def test_choices_are_measured_beside_perplexity_by_the_same_session(made, model):
    options = {"path": str(made / "texts"), "tokenizer": str(made / "tokenizer"), "protocol": "blocks-32"}
    plain, task = Language(**options), Language(**options, choices=str(made / "test.jsonl"))
    assert task.fingerprint != plain.fingerprint
    session = Eager().compile(model, Variant("v", None, frozenset({"float"}), {}), task.example(2))
    found = measure_quality(session, task, "test", 2, {})
    assert [(m.name, m.quality.primary) for m in found] == [("perplexity", True), ("acc", False), ("acc_norm", False)]
    alone = MultipleChoice(path=str(made), tokenizer=str(made / "tokenizer"), max_length=32)
    assert [m.value for m in found[1:]] == [m.value for m in measure_quality(session, alone, "test", 2, {})]
    assert task.facts()["choices"] == {"file": "test.jsonl", "questions": 5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 2}, r"choices\.jsonl: row 0 has the answer 2, and choices 0 to 1"),
        ({"answer": "0"}, "row 0 has the answer '0'"),
        ({"answer": -1}, "row 0 has the answer -1"),
        ({"choices": ["one"]}, "row 0 has choices that are no list of 2 texts and more"),
        ({"choices": ["one", ""]}, "row 0 has choices that are no list"),
        ({"context": 3}, "row 0 has a context that is no text: 3"),
    ],
)
def test_questions_that_are_not_as_they_should_be_are_refused(made, tmp_path, change, message):
    file = tmp_path / "choices.jsonl"
    file.write_text(json.dumps(QUESTIONS[0] | change) + "\n")
    options = {"path": str(made / "texts"), "tokenizer": str(made / "tokenizer"), "protocol": "blocks-32"}
    with pytest.raises(UserError, match=message):
        Language(**options, choices=str(file)).fingerprint  # noqa: B018


def test_a_missing_column_is_named(made, tmp_path):
    file = tmp_path / "choices.jsonl"
    file.write_text(json.dumps({"question": "a", "choices": ["b", "c"], "answer": 0}) + "\n")
    options = {"path": str(made / "texts"), "tokenizer": str(made / "tokenizer"), "protocol": "blocks-32"}
    with pytest.raises(UserError, match=r"task\.choices.*has no column 'context'"):
        Language(**options, choices=str(file)).fingerprint  # noqa: B018
