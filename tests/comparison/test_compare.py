"""`compare`: who is timed with whom, on what, how quality is paired, and what is refused."""

import re

import numpy as np
import pytest
import torch
from torch import nn

import optkit
import optkit.models
from optkit.core.engine import traits_of
from optkit.core.errors import StageError, UserError
from optkit.core.packed_weights import SIMULATED_IN_TORCH
from optkit.core.statistics import paired_difference, proportion
from optkit.engines import Eager
from optkit.measure import latency
from optkit.measure.disturbance import OtherLoad
from optkit.measure.latency import Series

X = torch.randn(4, 6)
QUICK = {"seconds": 0.01}


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


@pytest.fixture
def timed(monkeypatch):
    """Latencies as the test says, by place; what `interleaved` is asked is kept."""
    ms, asked, load = {}, [], [OtherLoad(0.0, 0.0)]

    def interleaved(sessions, inputs, seconds, seed, retries, precision, pairs, workload):
        asked.append({"inputs": inputs, "seconds": seconds, "seed": seed, "pairs": list(pairs), "workload": workload})
        noise = np.random.default_rng(0).normal(1, 0.001, (40, 5))
        return {place: Series(ms.get(place, 1.0) * noise, load[0]) for place in sessions}

    monkeypatch.setattr(latency, "interleaved", interleaved)
    return ms, asked, load


def total(model):
    """What tells models and their sessions apart."""
    return float(model(X).detach().sum())


def by_place(comparison):
    return {f"{r['model']} on {r['engine']} at {r['batch_size']}": r for r in comparison.rows}


def test_every_model_is_timed_on_every_engine_in_the_same_rounds(timed):
    ms, asked, _ = timed
    ms |= {"a on eager": 6.0, "a on other": 3.0, "b on eager": 2.0, "b on other": 1.5}
    engines = {"eager": Eager(), "other": "eager"}
    found = optkit.compare({"a": net(), "b": net(1)}, X, engines=engines, seconds=3, seed=7, batch_sizes=(2, 9))
    assert [len(one["inputs"][0]) for one in asked] == [2, 9]
    torch.testing.assert_close(asked[1]["inputs"][0], torch.cat([X, X, X])[:9])
    assert {(one["seconds"], one["seed"]) for one in asked} == {(3, 7)}
    assert asked[0]["pairs"] == [
        ("a on other", "a on eager"),
        ("b on eager", "a on eager"),
        ("b on other", "a on eager"),
        ("b on other", "a on other"),
    ]
    row = by_place(found)["b on other at 9"]
    assert row["latency_p50_ms"] == pytest.approx(1.5, rel=1e-2)
    assert row["speedup"] == pytest.approx(4)
    assert row["speedup_same_engine"] == pytest.approx(2)
    assert row["speedup_ci"][0] <= 4.000001
    assert [r["reference"] for r in found.rows] == [True, False, False, False] * 2
    assert by_place(found)["a on eager at 2"]["speedup"] == 1
    assert found.against == "a on eager"
    assert re.search(
        r"size 9 the fastest is b on other: 4.00( \[4.00, 4.00\])? times as fast as a on eager", found.verdict
    )


def test_the_reference_may_be_any_model(timed):
    ms, _, _ = timed
    ms["b on eager"] = 2.0
    found = optkit.compare({"a": net(), "b": net(1)}, X, reference="b")
    assert by_place(found)["a on eager at 4"]["speedup"] == pytest.approx(2)
    assert found.against == "b on eager"
    with pytest.raises(UserError, match=r"reference: no model 'bb' .*did you mean 'b'"):
        optkit.compare({"a": net(), "b": net(1)}, X, reference="bb")


def test_it_measures_for_real_and_leaves_torch_as_it_was():
    torch.set_num_threads(1)
    found = optkit.compare({"a": net(), "b": net()}, (X,), threads=2, **QUICK)
    assert torch.get_num_threads() == 1
    assert [r["threads"] for r in found.rows] == [2, 2]
    assert all(r["rounds"] >= 20 and r["latency_p50_ms"] > 0 for r in found.rows)
    row = found.rows[1]
    assert row["latency_p50_ms_ci"][0] <= row["latency_p50_ms"] <= row["latency_p50_ms_ci"][1]


def test_a_disturbed_timing_is_marked_and_says_nothing(timed):
    ms, _, load = timed
    ms["b on eager"], load[0] = 0.5, OtherLoad(0.9, 1.0)
    found = optkit.compare({"a": net(), "b": net()}, X)
    assert "2.00†" in found.table()
    assert found.verdict == (
        "† Not counted, for these timings cannot be trusted: at batch size 4 (other work kept 0.9 cores busy). "
        "Compare again when it is quiet."
    )
    assert "fastest" not in found.table()


def test_without_a_faster_model_the_verdict_says_so(timed):
    found = optkit.compare({"a": net(), "b": net()}, X)
    assert found.verdict == "At batch size 4 nothing is measurably faster than a on eager."


def test_answers_are_paired_as_accuracies_are(timed):
    right = {0: np.array([1, 1, 0, 1, 0, 1, 1, 1]), 1: np.array([1, 0, 0, 1, 1, 1, 0, 1])}
    models = {"a": net(), "b": net(1)}
    sums = {total(models[name]): right[n] for n, name in enumerate("ab")}
    found = optkit.compare(models, X, evaluate=lambda s: torch.tensor(sums[total(s)]).bool())
    first, second = found.rows
    assert first["score_ci"] == proportion(6, 8).ci
    assert (first["score_delta"], first["score_delta_ci"]) == (0, None)
    difference = paired_difference(right[1] > 0, right[0] > 0)
    assert second["score_delta"] == pytest.approx(-1 / 8)
    assert second["score_delta_ci"] == difference.delta.ci
    assert second["score_p_value"] == difference.p_value
    assert second["examples"] == 8
    assert "score %" in found.table()
    assert "75.0" in found.table()
    assert "-12.5 [" in found.table()


def test_scores_of_any_kind_are_paired_by_example(timed):
    noise = np.random.default_rng(0).normal(0, 1, 200)
    models = {"a": net(), "b": net(1)}
    sums = {total(models["a"]): 10 * noise, total(models["b"]): 10 * noise + 1 + 0.1 * noise[::-1]}
    row = optkit.compare(models, X, evaluate=lambda s: list(sums[total(s)])).rows[1]
    assert row["score_delta"] == pytest.approx(1, abs=0.05)
    # the spread of either is 10, that of the difference 0.1
    assert row["score_delta_ci"][1] - row["score_delta_ci"][0] < 0.2 < row["score_ci"][1] - row["score_ci"][0]


def test_one_number_has_no_interval(timed):
    found = optkit.compare({"a": net(), "b": net()}, X, evaluate=lambda s: np.float32(0.25))
    assert (found.rows[1]["score"], found.rows[1]["score_delta"], found.rows[1]["score_delta_ci"]) == (0.25, 0, None)
    assert "0.25  " in found.table()


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        (lambda s: 1 / 0, r"evaluate: fails on a on eager: ZeroDivisionError: division by zero"),
        (lambda s: s(X[:, :2]), r"evaluate: fails on a on eager: RuntimeError: mat1 and mat2"),
        (lambda s: None, r"evaluate: returns nothing for a on eager \(return a number"),
        (lambda s: "good", "evaluate: gives a str for a on eager, which is no number"),
        (lambda s: s(X), r"evaluate: gives the shape \[4, 3\] for a on eager .*one score for each example"),
        (lambda s: [], r"evaluate: gives the shape \[0\]"),
        (lambda s: [1.0, float("nan")], "evaluate: gives nan for example 1 of a on eager"),
        (lambda s: float("inf"), "evaluate: gives inf of a on eager"),
        (lambda s, n=[4, 4, 5]: np.ones(n.pop()), "evaluate: gives 4 scores for b on eager, and 5 scores for a on eager"),
        (lambda s, n=[1.0, [1.0]]: n.pop(), "evaluate: gives one number for b on eager, and 1 scores for a"),
    ],
)  # fmt: skip
def test_a_wrong_evaluate_is_one_line(timed, evaluate, message):
    _, asked, _ = timed
    with pytest.raises(UserError, match=message):
        optkit.compare({"a": net(), "b": net(1)}, X, evaluate=evaluate)
    assert not asked


LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 2, "vocab_size": 50, "max_position_embeddings": 64,
}  # fmt: skip
TOKENS = torch.arange(14).reshape(2, 7)


@pytest.fixture(scope="module")
def language():
    torch.manual_seed(0)
    return optkit.models.language_model(config=LLAMA)


def test_models_that_generate_are_timed_in_reading_prompts_and_generating(timed, language):
    ms, asked, _ = timed
    ms |= {"fp32 on eager": 8.0, "int8 on eager": 4.0}
    int8 = optkit.quantize_weight_only(language)
    found = optkit.compare({"fp32": language, "int8": int8}, TOKENS, prompt_lengths=[16, 5], batch_sizes=[1, 3])
    kinds = [(r["prompt_tokens"], r["batch_size"], r["workload"]) for r in found.rows[::2]]
    assert kinds == [(n, size, kind) for n in (5, 16) for size in (1, 3) for kind in ("prefill", "decode")]
    assert [tuple(one["inputs"][0].shape) for one in asked] == [(size, n) for n, size, _ in kinds]
    assert asked[-1]["inputs"][0][0].tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 0, 1]
    assert [one["workload"].name for one in asked] == [kind for *_, kind in kinds]
    last = {(r["model"], r["workload"]): r for r in found.rows[-4:]}
    assert last["fp32", "prefill"]["tokens_per_second"] == pytest.approx(3 * 16 / 0.008, rel=1e-3)
    assert last["int8", "decode"]["tokens_per_second"] == pytest.approx(3 / 0.004, rel=1e-3)
    assert last["int8", "decode"]["speedup"] == pytest.approx(2, rel=1e-3)
    assert "In generating behind prompts of 16 tokens at batch size 3 the fastest is int8 on eager" in found.verdict
    words = found.table().splitlines()[0].split()
    assert words[:5] == ["model", "engine", "batch", "prompt", "workload"]
    assert len(found.plot().to_dict()["vconcat"]) == 8


def test_generation_is_timed_for_real_and_judged_by_the_same_session(language):
    found = optkit.compare(
        {"a": language}, TOKENS, prompt_lengths=[4], evaluate=lambda s: float(s(TOKENS).mean()), **QUICK
    )
    prefill, decode = found.rows
    assert prefill["score"] == decode["score"] == pytest.approx(float(language(TOKENS).detach().mean()), rel=1e-4)
    assert prefill["tokens_per_second"] == pytest.approx(2 * 4 * 1000 / prefill["latency_p50_ms"])
    assert decode["latency_p50_ms"] > 0


NO_PROMPTS = {
    "longer than the model takes": ({"prompt_lengths": [8, 60]}, "prompt_lengths: prompts of 60 tokens and 8 behind them"),
    "a length alone": ({"prompt_lengths": 8}, r"prompt_lengths: 8 is no list .\[8\]"),
    "no tokens": ({"prompt_lengths": [0]}, "prompt_lengths: .0. are not lengths in tokens"),
    "a model without a cache": ({"models": {"a": nn.Embedding(50, 3).eval()}}, r"models\['a'\]: generates no tokens"),
    "no token numbers": ({"inputs": X}, "inputs: .4, 6. of float32 are no tokens"),
}  # fmt: skip


@pytest.mark.parametrize("case", NO_PROMPTS)
def test_prompts_that_cannot_be_are_one_line(language, case):
    given, message = NO_PROMPTS[case]
    with pytest.raises(UserError, match=message):
        optkit.compare(**({"models": {"a": language}, "inputs": TOKENS, "prompt_lengths": [8]} | given))


WRONG = {
    "no models": ({"models": {}}, "models: there is no model"),
    "no mapping": ({"models": [net()]}, "models: list is no mapping from names to models"),
    "no model": ({"models": {"a": 3}}, r"models\['a'\]: a int is no model"),
    "no folder": ({"models": {"a": "nowhere"}}, "no variant at nowhere"),
    "in train mode": ({"models": {"a": net().train()}}, r"models\['a'\]: the model is in train mode \(model.eval"),
    "an engine misspelt": ({"engines": ["opnvino"]}, "did you mean 'openvino'"),
    "no engine": ({"engines": []}, "engines: there is no engine"),
    "an engine that is none": ({"engines": [3]}, "engines: a int is no engine"),
    "an engine twice": ({"engines": ["eager", "eager"]}, "engines: two engines are named 'eager'"),
    "no inputs": ({"inputs": None}, "inputs: a NoneType is no example"),
    "inputs of another shape": ({"inputs": X[:, :2]}, r"models\['a'\]: does not take the example \[4, 2\]: RuntimeError"),
    "too many inputs": ({"inputs": (X, X)}, r"models\['a'\]: does not take the example \[4, 6\], \[4, 6\]: TypeError"),
    "inputs by name": ({"inputs": {"x": X}}, "inputs: a dict of x is no example of the model's inputs"),
    "a batch size twice": ({"batch_sizes": [4, 4]}, "batch_sizes: it has '4' twice"),
    "no batch size": ({"batch_sizes": [0]}, "batch_sizes: .* are not batch sizes"),
    "a batch size alone": ({"batch_sizes": 4}, r"batch_sizes: 4 is no list .\[4\]"),
    "no batch dimension": ({"inputs": (X, X[:2]), "batch_sizes": [2]}, "batch_sizes: inputs of the shapes"),
    "no threads": ({"threads": 0}, "threads: 0 is not a whole number"),
    "no time": ({"seconds": 0}, "seconds: 0 is not a time"),
    "no function": ({"evaluate": 0.9}, "evaluate: 0.9 is no function"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_refused_before_any_work(timed, case):
    given, message = WRONG[case]
    with pytest.raises(UserError, match=message):
        optkit.compare(**({"models": {"a": net()}, "inputs": X, "evaluate": lambda s: 1 / 0} | given))


def test_what_an_engine_cannot_run_is_in_the_table_with_the_reason(timed):
    int8 = optkit.quantize_static(net(), (X,), [X], target="onnxruntime")
    found = optkit.compare({"fp32": net(), "int8": int8}, X, engines=["eager", "onnxruntime"])
    rows = by_place(found)
    assert rows["int8 on onnxruntime at 4"]["int8_share"] == 1
    assert rows["int8 on eager at 4"]["not_run"].startswith("eager would compute the quantized graph in fp32")
    assert "speedup" not in rows["int8 on eager at 4"]
    table = found.table()
    assert "not run" in table
    assert "Not run: int8 on eager: eager would compute the quantized graph in fp32" in table
    assert len(found.to_frame()) == 4
    with pytest.raises(UserError, match="reference 'int8' runs on none of the engines: eager would compute"):
        optkit.compare({"int8": int8, "fp32": net()}, X)


def test_a_model_that_an_engine_cannot_compile_is_in_the_table_too(timed, monkeypatch):
    compile_ = Eager.compile

    def failing(self, module, variant, example):
        if len(module) == 2:
            raise StageError("no kernel for Tanh")
        return compile_(self, module, variant, example)

    monkeypatch.setattr(Eager, "compile", failing)
    found = optkit.compare({"a": net(), "b": nn.Sequential(nn.Linear(6, 3), nn.Tanh()).eval()}, X)
    assert found.rows[1]["not_run"] == "no kernel for Tanh"
    with pytest.raises(UserError, match="the reference 'b' runs on none of the engines: no kernel for Tanh"):
        optkit.compare({"a": net(), "b": nn.Sequential(nn.Linear(6, 3), nn.Tanh()).eval()}, X, reference="b")


def test_sessions_and_folders_are_models_too(timed, tmp_path):
    session = optkit.compile(net(), (X,), engine="onnxruntime")
    session.save(tmp_path)
    found = optkit.compare(
        {
            "module": net(),
            "session": session,
            "saved": tmp_path,
            "cut": optkit.prune_structured(net(), (X,), amount=0.3),
        },
        X,
    )
    assert [(r["model"], r["engine"]) for r in found.rows] == [
        ("module", "eager"), ("session", "onnxruntime"), ("saved", "onnxruntime"), ("cut", "eager"),
    ]  # fmt: skip
    assert found.rows[1]["speedup_same_engine"] is None


def test_the_table_fits_100_columns_and_a_narrower_one_drops_columns(timed, monkeypatch):
    models = {f"a rather long name of a model {n}": net(n) for n in range(3)}
    answers = lambda s: np.arange(50) % 2  # noqa: E731
    engines = {"eager": "eager", "a long engine name": "eager"}
    found = optkit.compare(models, X, engines=engines, evaluate=answers, batch_sizes=[1, 32])
    assert max(map(len, found.table().splitlines())) <= 100
    assert max(map(len, found.table(60).splitlines())) <= 60
    assert str(found) == repr(found) == found.table()
    # a notebook gets the text as well, and a terminal with colours no escapes
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert str(found) == found.table()
    assert "a rather long" in found.table()
    assert "\x1b" not in found.table()
    frame = found.to_frame()
    assert len(frame) == 12
    assert {"speedup", "speedup_low", "speedup_high", "score_delta_low", "caveat", "not_run"} <= set(frame.columns)


def test_html_and_picture(timed):
    _, _, load = timed
    found = optkit.compare({"<b>": net(), "b": net()}, X, evaluate=lambda s: np.arange(9) % 2)
    page = found._repr_html_()
    assert page.count("<tr>") == 3
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    drawn = found.plot().to_dict()
    panels = drawn["vconcat"][0]["hconcat"]
    assert len(panels) == 2
    assert "title" not in drawn
    load[0] = OtherLoad(0.9, 1.0)
    drawn = optkit.compare({"a": net(), "b": net()}, X).plot().to_dict()
    assert "cannot be trusted" in str(drawn["title"])
    assert len(drawn["vconcat"][0]["hconcat"]) == 1


@pytest.mark.parametrize("engine", ["eager", "inductor"])
def test_weights_that_torch_has_no_kernel_for_are_not_run_in_torch_and_the_reason_is_said(language, engine):
    grouped = optkit.quantize_weight_only(language, bits=8, group_size=16)
    with pytest.raises(UserError, match="torch has no kernel for its weights"):
        optkit.compile(grouped, (TOKENS,), engine=engine)
    found = optkit.compare({"fp32": language, "int8": grouped}, TOKENS, engines=["eager"], prompt_lengths=[4], **QUICK)
    reasons = {row["not_run"] for row in found.rows if row["model"] == "int8"}
    assert reasons == {"torch has no kernel for its weights: eager would multiply by dequantized ones"}


def test_a_model_says_what_its_layers_are(language):
    assert traits_of(language) == {"float"}
    assert traits_of(optkit.quantize_weight_only(language, bits=8).module) == {"weight_only"}
    assert traits_of(optkit.quantize_weight_only(language, bits=4, group_size=16).module) == {
        "weight_only", SIMULATED_IN_TORCH
    }  # fmt: skip
