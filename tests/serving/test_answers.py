"""From a variant to a folder, and from the folder to answers: those of the module."""

import json

import numpy as np
import pytest
import torch

import optkit
from optkit.core.artifact import save_artifact
from optkit.core.errors import UserError
from optkit.core.variant import Variant
from optkit.costs.policies import Autoscaled
from optkit.deploy.source import Source
from optkit.serving.answers import Answers
from optkit.serving.model_folder import save_model
from optkit.serving.plan import Plan
from optkit.serving.requests import RequestError, Requests
from optkit.serving.serving import prepared


@pytest.fixture
def source(digits, mlp):
    variant = Variant(
        "v1",
        None,
        frozenset({"float"}),
        {"target": "optkit.models.MLP", "params": {"input_shape": [1, 8, 8], "widths": [32]}},
    )
    return Source("tiny", mlp, variant, digits.example(2), digits)


@pytest.fixture
def saved(source, tmp_path):
    return save_model(source, Plan("eager", 4), tmp_path / "model")


def test_answers_are_those_of_the_module(saved, source, digits):
    answers = Answers(saved, 4, 1)
    (batch, *_) = digits.batches("test", 3)
    images = batch.inputs[0]
    found = answers([{answers.inputs[0].name: x.numpy()} for x in images])
    with torch.no_grad():
        wanted = source.module(images)
    for answer, logits in zip(found, wanted, strict=True):
        np.testing.assert_allclose(answer["outputs"]["logits"], logits.numpy(), rtol=1e-5, atol=1e-5)
        assert answer["class"] == str(int(logits.argmax()))


def test_one_bad_example_does_not_spoil_the_others(saved):
    answers = Answers(saved, 4, 1)
    name = answers.inputs[0].name
    fine = {name: np.zeros((1, 8, 8), np.float32)}
    found = answers(
        [fine, {name: np.full((1, 8, 8), np.nan, np.float32)}, {name: np.zeros((1, 8, 9), np.float32)}, fine]
    )
    assert found[0] == found[3]
    assert "class" in found[0]
    assert found[1] == "the model failed: its output 'logits' is not finite"
    assert found[2].startswith("the model failed: ")


def test_the_folder_says_how_requests_are_read(saved, digits):
    rules = json.loads((saved / "preprocess.json").read_text())
    assert (rules["kind"], rules["size"], rules["outputs"][0]["name"]) == ("image", [8, 8], "logits")
    answers = Answers(saved, 4, 1)
    requests = Requests(answers.inputs, rules, saved, 10_000)
    with pytest.raises(RequestError, match="the body is too large"):
        requests.read(b" " * 10_001)


def test_a_saved_session_is_served_as_it_is(mlp, tmp_path):
    (tmp_path / "variant").mkdir()
    save_artifact(
        tmp_path / "variant",
        Variant(
            "v1",
            None,
            frozenset({"float"}),
            {"target": "optkit.models.MLP", "params": {"input_shape": [1, 8, 8], "widths": [32]}},
        ),
        mlp,
        (torch.zeros(2, 1, 8, 8),),
    )
    found = optkit.load(tmp_path / "variant", engine="eager", batch_size=2)
    found.save(tmp_path / "session")
    folder, plan = prepared(tmp_path / "session", None, {"max_wait_ms": 3.0, "replicas": 2}, tmp_path / "unused")
    assert (folder, plan.engine, plan.max_batch, plan.max_wait_ms, plan.replicas) == (
        tmp_path / "session", "eager", 2, 3.0, 2,
    )  # fmt: skip
    answers = Answers(folder, 2, 1)
    assert [(one.name, one.shape) for one in answers.inputs] == [("input_0", (1, 8, 8))]
    (answer,) = answers([{"input_0": np.zeros((1, 8, 8), np.float32)}])
    assert "class" not in answer
    with pytest.raises(UserError, match="engine: the session in .* is of eager"):
        prepared(tmp_path / "session", "openvino", {}, tmp_path / "unused")
    with pytest.raises(UserError, match="task.path=x: a saved session has no recipe"):
        prepared(tmp_path / "session", None, {}, tmp_path / "unused", ["task.path=x"])


def test_a_saved_folder_is_served_by_the_plan_it_was_saved_with(source, tmp_path):
    scaling = Autoscaled(target=2.0, min_replicas=1, max_replicas=3)
    asked = Plan("eager", 4, 7.0, 3, scaling, threads=2, memory_gb=0.5, variant=source.variant.id)
    save_model(source, asked, tmp_path / "model")
    assert prepared(tmp_path / "model", None, {}, tmp_path / "unused")[1] == asked
    assert prepared(tmp_path / "model", None, {"max_wait_ms": 1.0}, tmp_path / "unused")[1].max_wait_ms == 1.0
    (tmp_path / "model" / "plan.json").write_text("{}")
    with pytest.raises(UserError, match="plan.json: not the plan that optkit serve --save writes"):
        prepared(tmp_path / "model", None, {}, tmp_path / "unused")


def test_a_variant_without_an_engine_or_with_one_that_cannot_is_one_line(source, tmp_path):
    with pytest.raises(UserError, match="engine: missing"):
        prepared(tmp_path / "none", None, {}, tmp_path / "to")
    with pytest.raises(UserError, match="engine: no engine 'opnvino'.*openvino"):
        save_model(source, Plan("opnvino", 4), tmp_path / "to")
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="save: .*there is there already"):
        save_model(source, Plan("eager", 4), tmp_path / "there")
    for folder in (tmp_path / "none", tmp_path / "there"):
        with pytest.raises(UserError):
            prepared(folder, "eager", {}, tmp_path / "to")
    assert not (tmp_path / "to").exists()
