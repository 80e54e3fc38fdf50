"""lm-eval on a session gives what its own model class gives, and so do optkit's zero-shot figures."""

import json

import pytest
import torch

from optkit.core.variant import Variant
from optkit.engines.eager import Eager
from optkit.measure.quality import measure_quality
from optkit.models import language_model
from optkit.tasks import MultipleChoice
from optkit.tasks.tokens import trained_on_documents

pytest.importorskip("lm_eval")

from optkit.tasks.language.lm_evaluation import SessionLM

WORDS = "the heron stood in cold water and a small grey fish did not move at all".split()
LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "vocab_size": 400, "pad_token_id": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with questions, a model and its tokenizer, and a session of it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("lm_eval")
    draw = lambda n: " ".join(WORDS[int(i)] for i in torch.randint(len(WORDS), (n,)))  # noqa: E731
    tokenizer = trained_on_documents([draw(20) for _ in range(50)], "lm_eval", 400)
    questions = [
        {"context": draw(1 + n % 9), "choices": [draw(1 + n % 3), draw(2)], "answer": n % 2} for n in range(40)
    ]
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    module = language_model(config=LLAMA)
    for parameter in module.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    module.model.save_pretrained(folder / "model")
    tokenizer.hf.save_pretrained(folder / "model")
    session = Eager().compile(
        module, Variant("v", None, frozenset({"float"}), {}), (torch.zeros(1, 8, dtype=torch.long),)
    )
    return folder, session, tokenizer.hf


@pytest.fixture(scope="module")
def theirs(made):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(made[0] / "model"), device="cpu", dtype="float32", batch_size=1, max_length=32)


def _requests(*args):
    from lm_eval.api.instance import Instance

    return [Instance("loglikelihood", {}, one, n) for n, one in enumerate(args)]


@pytest.mark.slow
def test_zero_shot_figures_are_those_of_lm_eval(made, theirs):
    import lm_eval
    from lm_eval.tasks import TaskManager

    folder, session, hf = made
    (folder / "tasks").mkdir()
    (folder / "tasks/heron.yaml").write_text(
        f"task: heron\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / 'test.jsonl'}}}}}\n"
        "output_type: multiple_choice\ntest_split: test\ndoc_to_text: '{{context}}'\ndoc_to_choice: choices\n"
        "doc_to_target: answer\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n"
    )
    figures = []
    for model in (theirs, SessionLM(session, hf, 32, batch_size=4)):
        manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
        found = lm_eval.simple_evaluate(model=model, tasks=["heron"], task_manager=manager, bootstrap_iters=0)
        figures.append([found["results"]["heron"][f"{name},none"] for name in ("acc", "acc_norm")])
    task = MultipleChoice(path=str(folder), tokenizer=str(folder / "model"), max_length=32)
    figures.append([m.value for m in measure_quality(session, task, "test", 4, {})])
    assert figures[0] == figures[1] == figures[2]
    assert 0 < figures[0][0] < 1


@pytest.mark.slow
def test_log_likelihoods_are_those_of_lm_eval(made, theirs):
    _, session, hf = made
    ours = SessionLM(session, hf, 32, batch_size=2)
    requests = _requests(("the heron", " stood"), ("", "cold water"), ("in cold ", "fish"), ("the " * 50, "all at all"))
    for one, other in zip(ours.loglikelihood(requests), theirs.loglikelihood(requests), strict=True):
        assert one[0] == pytest.approx(other[0], rel=1e-4)
        assert one[1] == other[1]
    texts = _requests(("the heron stood",), ("in cold water and a small grey fish " * 12,))
    assert ours.loglikelihood_rolling(texts) == pytest.approx(theirs.loglikelihood_rolling(texts), rel=1e-4)


@pytest.mark.slow
def test_generated_texts_are_those_of_lm_eval_and_end_at_a_stop(made, theirs):
    _, session, hf = made
    ours = SessionLM(session, hf, 32)
    requests = _requests(*(("the heron stood", {"until": [], "max_gen_toks": 12}) for _ in range(1)))
    (whole,) = ours.generate_until(requests)
    assert [whole] == theirs.generate_until(requests)
    stop = whole[3:6]
    (cut,) = ours.generate_until(_requests(("the heron stood", {"until": [stop], "max_gen_toks": 12})))
    assert cut == whole[: whole.index(stop)]
