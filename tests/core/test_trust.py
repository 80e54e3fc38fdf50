"""Saved variants are data: what they name must not run."""

import importlib
import json
import os
import pkgutil
import sys

import pytest
import torch
from torch import nn

import optkit
from optkit.core.artifact import open_artifact, save_artifact
from optkit.core.errors import UserError
from optkit.core.trust import rebuild, stage_class
from optkit.core.variant import Variant
from optkit.models import MLP

SPEC = {"target": "optkit.models.MLP", "params": {"input_shape": [4], "widths": [4]}}
COMMAND = {"_target_": "os.system", "command": "touch pwned"}
CONFIG = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
OWN = """
import os
from collections import OrderedDict
from torch import nn
from torch.nn import Linear as Borrowed

class Net(nn.Linear): ...

class Halve:
    @staticmethod
    def replay(module, surgery, example):
        return module

def build(features):
    return nn.Linear(features, features)

def run(command):
    os.system(command)
"""


@pytest.fixture
def folder(tmp_path):
    variant = Variant("abc", None, frozenset({"float"}), SPEC)
    save_artifact(tmp_path, variant, MLP([4], widths=[4]).eval(), (torch.zeros(2, 4),))
    return tmp_path


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("mine", None)


def _edit(folder, **changes):
    path = folder / "variant.json"
    data = json.loads(path.read_text())
    data["variant"] |= changes
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    "model",
    [
        {"target": "os.system", "params": {"command": "touch pwned"}},
        {"target": "builtins.eval", "params": {}},
        {"target": "antigravity.fly", "params": {}},
        {"target": "optkit.core.instantiate.build", "params": {"node": COMMAND, "key": "x"}},
        {"target": "optkit.core.instantiate.locate", "params": {"target": "antigravity.fly", "key": "x"}},
        {"target": "optkit.core.instantiate.importlib.import_module", "params": {"name": "antigravity"}},
        {"target": "optkit.load", "params": {"directory": ".", "trust": ["os"]}},
        {"target": "optkit.engines.loading.load", "params": {"directory": ".", "trust": ["os"]}},
        {"target": "optkit.cli.main", "params": {}},
        {"target": "optkit.recipe.compose.build", "params": {"node": COMMAND, "key": "x"}},
        {"target": "optkit.distill.teachers.load_teacher", "params": {"spec": COMMAND}},
        {"target": "optkit.training.checkpoint.torch.load", "params": {"f": "x", "weights_only": False}},
        {"target": "optkit.core.cache.write_json", "params": {"path": "pwned", "data": 1, "key": "x"}},
        {"target": "optkit.core.cache.shutil.rmtree", "params": {"path": "."}},
        {"target": "optkit.models.load_weights", "params": {"module": None, "path": "x"}},
        {"target": "optkit.models.weights.read_tensors", "params": {"path": "x", "key": "x"}},
        {"target": "optkit.models.spec.locate", "params": {"target": "antigravity.fly", "key": "x"}},
        {"target": "optkit.models.ModelSpec", "params": {"target": "os.system", "params": {}}},
        {"target": "optkit.models.spec.torch.hub.load", "params": {"repo_or_dir": ".", "model": "x"}},
        {"target": "optkit.models.spec.Any", "params": {}},
        {"target": "optkit.models.huggingface.read_config", "params": {"name": "x", "num_classes": 1, "key": "x"}},
        {"target": "optkit.models.small.nn", "params": {}},
        {"target": "optkit.models", "params": {}},
        {"target": "optkit", "params": {}},
        {"target": "", "params": {}},
        {"target": None, "params": {}},
        {"params": {}},
        {"target": "optkit.models.MLP", "params": "x"},
        {"target": "optkit.models.MLP", "params": SPEC["params"] | {"exec": "x"}},
    ],
)
def test_a_model_that_is_no_builder_of_models_does_not_run(folder, model, monkeypatch):
    monkeypatch.chdir(folder)
    _edit(folder, model=model)
    with pytest.raises(UserError):
        optkit.load(folder)
    assert "antigravity" not in sys.modules
    assert sorted(os.listdir(folder)) == ["variant.json", "weights.safetensors"]


@pytest.mark.parametrize(
    "by",
    [
        "shutil.rmtree", "optkit.core.cache.shutil.rmtree", "optkit.__main__.main", "optkit.load",
        "optkit.models.MLP", "optkit.prune.prune_structured", "optkit.core.stage.Context", None,
        "optkit.prune.StructuredPruning", "prune.structured/99", "../prune.structured/1",
    ],
)  # fmt: skip
def test_a_surgery_that_is_no_stage_does_not_run(folder, by):
    _edit(folder, surgeries=[{"by": by, "data": {}}])
    with pytest.raises(UserError, match="would run code of|no stage with a replay|knows no surgery"):
        optkit.load(folder)


@pytest.mark.parametrize(
    ("target", "params"),
    [
        ("torchvision", {"name": "resnet18", "weights": "DEFAULT"}),
        ("torchvision", {"name": "resnet18", "options": {"weights": "DEFAULT"}}),
        ("torchvision", {"name": "resnet18", "options": {"progress": "DEFAULT"}}),
        ("torchvision", {"name": "resnet18", "options": {"weights": None}}),
        ("huggingface", {"pretrained": "gpt2"}),
        ("huggingface", {"pretrained": "gpt2", "config": CONFIG}),
        ("huggingface", {"config": "gpt2"}),
        ("huggingface", {"config": CONFIG | {"attn_implementation": "kernels-community/any"}}),
        ("huggingface", {"config": CONFIG | {"_attn_implementation_internal": "any/any"}}),
        ("huggingface", {"config": {"model_type": "timm_wrapper", "architecture": "local-dir:/any"}}),
        ("huggingface", {"config": {"model_type": "timm_wrapper", "model_args": {"checkpoint_path": "any.pth"}}}),
        ("huggingface", {"config": CONFIG | {"parts": [{"vision_config": {"model_args": {"checkpoint_path": "x"}}}]}}),
    ],
)
def test_a_saved_model_fetches_nothing_and_reads_no_other_files(target, params, monkeypatch):
    def fetched(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", fetched)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", fetched)
    monkeypatch.setattr("transformers.AutoConfig.for_model", fetched)
    with pytest.raises(UserError, match="names no other weights|options are numbers|names a hub id|names no code"):
        rebuild({"target": f"optkit.models.{target}", "params": params})


def _names(package):
    """Every name in every module of a package, by full path."""
    found = [package, *(f"{package}.{m.name}" for m in pkgutil.iter_modules(importlib.import_module(package).__path__))]
    return [f"{module}.{name}" for module in found for name in vars(importlib.import_module(module))]


def test_of_optkits_models_only_these_can_be_reached():
    found = set()
    for path in _names("optkit.models"):
        try:
            rebuild({"target": path, "params": None})
        except UserError as error:
            if "None are no parameters" in error.message:
                found.add(path.rpartition(".")[2])
    assert found == {
        "BasicBlock", "ResNetCIFAR", "SmallCNN", "MLP", "torchvision", "huggingface", "ImageClassifier",
        "TextClassifier", "UNet", "DenseDetector", "language_model", "CausalLM", "CachedCausalLM", "InPlaceCausalLM",
    }  # fmt: skip


def test_a_package_that_is_trusted_gives_its_models_and_stages_and_no_more(own):
    net = {"target": "mine.Net", "params": {"in_features": 2, "out_features": 3}}
    with pytest.raises(UserError, match="would run code of the package 'mine' \\(if you trust it, add 'mine.Net' to"):
        rebuild(net)
    assert "mine" not in sys.modules
    assert isinstance(rebuild(net, ("mine",)), nn.Module)
    assert stage_class("mine.Halve", ("mine",)).__name__ == "Halve"
    for target in ("mine.run", "mine.build", "mine.Halve", "mine.OrderedDict", "mine.Borrowed", "mine.os.system"):
        with pytest.raises(UserError):
            rebuild({"target": target, "params": {}}, ("mine",))
    for target in ("mine.Net", "mine.run"):
        with pytest.raises(UserError, match="no stage"):
            stage_class(target, ("mine",))
    with pytest.raises(UserError, match="would run code of the package 'mine2'"):
        rebuild({"target": "mine2.Net", "params": {}}, ("mine",))


def test_a_function_is_trusted_by_its_full_name(own, folder):
    module = nn.Linear(4, 4)
    save_artifact(
        folder,
        Variant("abc", None, frozenset({"float"}), {"target": "mine.build", "params": {"features": 4}}),
        module,
        (torch.zeros(2, 4),),
    )
    with pytest.raises(
        UserError, match="mine.build is no class of models \\(if you trust it, add 'mine.build' to trust"
    ):
        optkit.load(folder, trust=["mine"])
    assert torch.equal(optkit.load(folder, trust=["mine.build"]).weight, module.weight)
    with pytest.raises(UserError, match="trust: 'mine.build' is not a list"):
        open_artifact(folder).module("mine.build")
