"""One contract for every stage that conf/stage holds."""

import json

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from optkit.core.artifact import save_artifact
from optkit.core.errors import UserError
from optkit.core.instantiate import build
from optkit.core.stage import ChecksModel, Context, Stage
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


@pytest.fixture(scope="module", params=stage_catalogue())
def stage(request):
    return _stage(request.param)


@pytest.fixture(scope="module")
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


def _apply(stage, spec, digits, folder):
    """What a stage makes of the model as built."""
    context = Context(
        task=SealedTask(digits),
        variant=Variant("id", None, frozenset({"float"}), {}),
        baseline=lambda: spec.build(2).eval(),
        build_model=lambda node: spec.build(0).eval(),
        seed=1,
        device=torch.device("cpu"),
        workdir=folder,
        max_steps=4,
    )
    return stage.apply(spec.build(0).eval(), context)


@pytest.fixture(scope="module")
def outcome(stage, spec, digits, tmp_path_factory):
    return _apply(stage, spec, digits, tmp_path_factory.mktemp("stage"))


def test_it_is_a_stage_with_a_line_of_help(stage):
    assert isinstance(stage, Stage)
    assert type(stage).__doc__.strip()


def test_it_changes_the_model_and_says_what_it_did(spec, outcome):
    before, after = spec.build(0).state_dict(), outcome.module.state_dict()
    shapes = {k: v.shape for k, v in before.items()} != {k: v.shape for k, v in after.items()}
    assert shapes or any(not torch.equal(before[k], after[k]) for k in before)
    assert outcome.facts
    json.dumps([outcome.facts, outcome.surgery], allow_nan=False)


def test_it_gives_what_reloads_to_the_same_answers(outcome, stage, spec, digits, tmp_path):
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
def test_it_is_deterministic(outcome, stage, spec, digits, tmp_path):
    first, second = outcome.module.state_dict(), _apply(stage, spec, digits, tmp_path).module.state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_it_leaves_no_hook_and_no_training_mode(outcome):
    for module in outcome.module.modules():
        assert not module._forward_hooks
        assert not module._backward_hooks
        assert "forward" not in vars(module) or isinstance(outcome.module, torch.fx.GraphModule)
    if not isinstance(outcome.module, torch.fx.GraphModule):
        assert not any(m.training for m in outcome.module.modules())
