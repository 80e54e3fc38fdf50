import copy
import json
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from optkit.core.errors import UserError
from optkit.core.trust import rebuild
from optkit.models import MLP, ModelSpec, ResNetCIFAR, SmallCNN, load_weights, torchvision

DEFAULTS = {"num_classes": 7, "in_channels": 1, "input_shape": [1, 8, 8]}


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_resnets_have_the_papers_parameters(depth, millions):
    # He et al. (2016), table 6
    count = sum(p.numel() for p in ResNetCIFAR(depth).parameters()) / 1e6
    assert count == pytest.approx(millions, abs=0.04)


def test_resnet_keys_are_those_of_the_usual_checkpoints():
    keys = set(ResNetCIFAR(20).state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer3.2.conv2.weight", "layer2.0.bn1.bias", "linear.bias"} <= keys
    assert not any("shortcut" in key for key in keys)


def test_the_shortcut_subsamples_and_pads_with_zeros():
    block = ResNetCIFAR(8).layer2[0].eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 16, 8, 8)
    out = block(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert out[:, :8].abs().max() == 0
    assert out[:, 24:].abs().max() == 0


@pytest.mark.parametrize("depth", [7, 21, 2, 0])
def test_a_depth_that_is_no_resnet_is_refused(depth):
    with pytest.raises(UserError, match="6n"):
        ResNetCIFAR(depth)


@pytest.mark.parametrize("model", [SmallCNN(5, 1), MLP([1, 16, 16], 5), torchvision("mobilenet_v2", 5)])
def test_models_give_logits(model):
    x = torch.randn(2, 3 if "MobileNet" in type(model).__name__ else 1, 16, 16)
    assert model.eval()(x).shape == (2, 5)


def test_the_task_fills_in_what_the_recipe_leaves_open():
    node = {
        "_target_": "optkit.models.ResNetCIFAR",
        "depth": 8,
        "num_classes": None,
        "in_channels": 3,
        "checkpoint": None,
    }
    assert ModelSpec.from_config(node, DEFAULTS).params == {"depth": 8, "num_classes": 7, "in_channels": 3}


def test_first_weights_follow_from_the_seed_and_leave_the_global_one_alone():
    spec = ModelSpec("optkit.models.MLP", {"input_shape": [4], "widths": [3]})
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = spec.build(1), spec.build(1), spec.build(2)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one.layers[1].weight, same.layers[1].weight)
    assert not torch.equal(one.layers[1].weight, other.layers[1].weight)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"depth": 20}, "model: no _target_"),
        ({"_target_": "optkit.models.ResNetCIFRA"}, "did you mean 'ResNetCIFAR'"),
        ({"_target_": "optkit.models.ResNetCIFAR", "dpeth": 20}, r"model\.dpeth.*did you mean 'depth'"),
        ({"_target_": "optkit.models.ResNetCIFAR", "checkpoint": "no.pt"}, "no file no.pt"),
    ],
)
def test_mistakes_in_the_model_are_named(node, message):
    with pytest.raises(UserError, match=message):
        ModelSpec.from_config(node, DEFAULTS)


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [("resnet_18", None, "did you mean 'resnet18'"), ("resnet18", "IMAGENET", "model.weights.*no weights 'IMAGENET'")],
)
def test_mistakes_in_torchvision_names_are_named(name, weights, message):
    with pytest.raises(UserError, match=message):
        torchvision(name, weights=weights)


def test_torchvision_takes_other_arguments_of_its_builder():
    with torch.device("meta"):
        assert torchvision("vit_b_32", 5, options={"image_size": 64}).image_size == 64
        saved = {"name": "vgg11", "num_classes": 5, "weights": None, "options": {"init_weights": False}}
        assert rebuild({"target": "optkit.models.torchvision", "params": saved}).classifier[-1].out_features == 5
    with pytest.raises(UserError, match=r"model.options: .*unexpected keyword argument 'image_sise'"):
        torchvision("vit_b_32", 5, options={"image_sise": 64})


def _shapes(model):
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "weights", "classes", "decided"),
    [
        ("googlenet", "DEFAULT", 1000, {"transform_input": True}),
        ("inception_v3", "IMAGENET1K_V1", 5, {"transform_input": True}),
        ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1", 1000, {"image_size": 384}),
        ("resnet18", "DEFAULT", 5, {}),
    ],
)
def test_what_weights_decide_is_part_of_the_skeleton(monkeypatch, name, weights, classes, decided):
    monkeypatch.setattr(models.get_model_weights(name), "get_state_dict", lambda *_, **__: {})
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: None)
    with torch.device("meta"):
        spec = ModelSpec("optkit.models.torchvision", {"name": name, "num_classes": classes, "weights": weights})
        model = spec.build(0)
        skeleton = copy.deepcopy(spec.skeleton(pickle.loads(pickle.dumps(model))))
        again = ModelSpec(skeleton["target"], json.loads(json.dumps(skeleton["params"]))).build(0)
    assert skeleton["params"]["options"] == decided
    assert {key: getattr(again, key) for key in decided} == {key: getattr(model, key) for key in decided} == decided
    assert _shapes(again) == _shapes(model)


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "wrapped.pt"])
def test_checkpoints_load(tmp_path, suffix):
    torch.manual_seed(1)
    source, target = SmallCNN(3, 1, [4]), SmallCNN(3, 1, [4])
    path = tmp_path / f"weights.{suffix}"
    state = {k: v for k, v in source.state_dict().items() if "num_batches" not in k}
    if suffix == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}} if "wrapped" in suffix else state, path)
    load_weights(target, path)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(source.eval()(x), target.eval()(x))


class _Evil:
    def __reduce__(self):
        return (open, ("pwned", "w"))


@pytest.mark.parametrize("kind", ["text", "pickle", "empty", "not tensors"])
def test_what_is_no_checkpoint_is_refused_and_never_run(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.pt"
    if kind == "pickle":
        torch.save({"x": _Evil()}, path)
    elif kind == "not tensors":
        torch.save({"epoch": 3}, path)
    else:
        path.write_bytes(b"" if kind == "empty" else b"hello")
    with pytest.raises(UserError, match="w.pt"):
        load_weights(SmallCNN(), path)
    assert not (tmp_path / "pwned").exists()


def test_what_neither_model_nor_task_says_is_asked_for():
    node = {"_target_": "optkit.models.SmallCNN", "num_classes": None, "in_channels": None, "widths": [8]}
    with pytest.raises(UserError, match="model.num_classes: SmallCNN needs it, and the task does not say it"):
        ModelSpec.from_config(node, {"in_channels": 3})
