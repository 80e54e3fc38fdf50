"""One contract for every stage that conf/stage holds."""

import copy
import json

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from optkit.core.artifact import save_artifact
from optkit.core.errors import UserError
from optkit.core.instantiate import build
from optkit.core.stage import ChecksModel, Stage
from optkit.core.surgeries import surgery_name
from optkit.core.task import SealedTask
from optkit.core.variant import Variant
from optkit.models import ModelSpec
from optkit.recipe.compose import shipped, stage_catalogue

RESNET = ModelSpec("optkit.models.ResNetCIFAR", {"depth": 14, "in_channels": 1, "num_classes": 10, "width": 8})
VIT = ModelSpec(
    "optkit.models.huggingface",
    {
        "config": {
            "model_type": "vit", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 32, "patch_size": 4, "image_size": 8, "num_channels": 1, "num_labels": 10,
        },
        "inputs": ["pixel_values"],
    },
)  # fmt: skip


def _stage(name):
    with initialize_config_dir(str(shipped("conf")), version_base="1.3"):
        node = OmegaConf.to_container(compose(overrides=[f"+stage@it={name}"])["it"])
    if "steps" in node:
        node["steps"] = min(node["steps"], 2)
    for trains in (node, node.get("training") or {}):
        if "trainer" in trains:
            trains["trainer"] |= {"epochs": 1, "batch_size": 32, "lr": 0.01}
    return build(node, name)


@pytest.fixture(params=stage_catalogue())
def stage(request):
    return _stage(request.param)


@pytest.fixture
def spec(stage, digits):
    """The first model that the stage itself says it is fit for."""
    if not isinstance(stage, ChecksModel):
        return RESNET
    for spec in (RESNET, VIT):
        try:
            stage.check(spec.build(0).eval(), SealedTask(digits))
        except UserError:
            continue
        return spec
    raise AssertionError("the stage refuses every model of the contract")


@pytest.fixture
def model(spec):
    return spec.build(0).eval()


@pytest.fixture
def applied(stage, spec, model, context, digits):
    ctx = context()
    object.__setattr__(ctx, "baseline", lambda: spec.build(2).eval())
    before = copy.deepcopy(model.state_dict())
    outcome = stage.apply(model, ctx)
    return before, outcome, ctx


def test_it_is_a_stage_with_a_line_of_help(stage):
    assert isinstance(stage, Stage)
    assert type(stage).__doc__.strip()


def test_it_changes_the_model_and_says_what_it_did(applied):
    before, outcome, _ = applied
    after = outcome.module.state_dict()
    shapes = {k: v.shape for k, v in before.items()} != {k: v.shape for k, v in after.items()}
    assert shapes or any(not torch.equal(before[k], after[k]) for k in before)
    assert outcome.facts
    json.dumps([outcome.facts, outcome.surgery], allow_nan=False)


def test_it_gives_what_reloads_to_the_same_answers(applied, stage, spec, digits, tmp_path):
    _, outcome, _ = applied
    data = json.loads(json.dumps(outcome.surgery))
    surgeries = ({"by": surgery_name(type(stage)), "data": data},) if data else ()
    variant = Variant("v", None, frozenset(), spec.skeleton(outcome.module), surgeries)
    folder = tmp_path / "artifact"
    folder.mkdir()
    artifact = save_artifact(folder, variant, outcome.module, digits.example(2))
    x = digits.example(5)
    with torch.no_grad():
        assert torch.equal(artifact.module()(*x), outcome.module(*x))


@pytest.mark.slow
def test_it_is_deterministic(stage, spec, context, tmp_path):
    answers = []
    for attempt in range(2):
        ctx = context()
        folder = tmp_path / str(attempt)
        folder.mkdir()
        object.__setattr__(ctx, "baseline", lambda: spec.build(1).eval())
        object.__setattr__(ctx, "workdir", folder)
        answers.append(stage.apply(spec.build(0).eval(), ctx).module.state_dict())
    assert all(torch.equal(answers[0][k], answers[1][k]) for k in answers[0])


def test_it_leaves_no_hook_and_no_training_mode(applied):
    _, outcome, _ = applied
    for module in outcome.module.modules():
        assert not module._forward_hooks
        assert not module._backward_hooks
        assert "forward" not in vars(module) or isinstance(outcome.module, torch.fx.GraphModule)
    if not isinstance(outcome.module, torch.fx.GraphModule):
        assert not any(m.training for m in outcome.module.modules())
