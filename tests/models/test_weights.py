import copy
import logging
from contextlib import suppress

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from optkit.core.errors import UserError
from optkit.models import ModelSpec, ResNetCIFAR, SmallCNN, huggingface, load_weights, torchvision
from optkit.models.checkpoint_summary import guess
from optkit.models.weights import check_finite, read_tensors


def _small(seed):
    torch.manual_seed(seed)
    return SmallCNN(3, 1, [4]).eval()


def _same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def _under(prefix, state):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


STATE = _small(1).state_dict()
OTHER = _small(2).state_dict()
WRAPPED = {
    "torch.compile": _under("_orig_mod.", STATE),
    "DDP": _under("module.", STATE),
    "DDP of a compiled model": _under("module._orig_mod.", STATE),
    "compiled DDP": _under("_orig_mod.module.", STATE),
    "Lightning": {"state_dict": _under("model.", STATE), "epoch": 3, "pytorch-lightning_version": "2.0"},
    "Lightning, compiled": {"state_dict": _under("model._orig_mod.", STATE), "optimizer_states": [{"state": {}}]},
    "Lightning with a loss": {"state_dict": _under("net.", STATE) | {"criterion.weight": torch.ones(3)}},
    "any prefix": _under("student.backbone.", STATE),
    "a compiled part": {n.replace("features.", "features._orig_mod."): t for n, t in STATE.items()},
    "FSDP": {n.replace("features.", "_fsdp_wrapped_module.features._checkpoint_wrapped_module."): t for n, t in STATE.items()},
    "state_dict": {"state_dict": STATE, "optimizer": {"state": {0: {"exp_avg": torch.ones(4)}}, "param_groups": [{"lr": 1}]}},
    "model": {"model": STATE},
    "model_state_dict": {"model_state_dict": STATE, "loss": 0.5},
    "within within": {"checkpoint": {"model": _under("module.", STATE)}},
    "only a moving average": {"ema": {"module": STATE}},
    "beside its moving average": {"ema": OTHER, "model": STATE, "model_ema": OTHER},
    "beside its moving average, flat": _under("ema_model.", OTHER) | _under("model.", STATE),
    "beside a teacher of another width": _under("teacher.", SmallCNN(3, 1, [8]).state_dict()) | _under("student.", STATE),
    "in half precision": {name: t.bfloat16().float().half() if t.is_floating_point() else t for name, t in STATE.items()},
}  # fmt: skip


@pytest.mark.parametrize("data", WRAPPED.values(), ids=WRAPPED)
def test_weights_are_found_whatever_was_around_the_model(tmp_path, data):
    torch.save(data, tmp_path / "w.pt")
    model = _small(3)
    load_weights(model, tmp_path / "w.pt")
    expected = _small(1)
    if data is WRAPPED["in half precision"]:
        expected.load_state_dict({name: tensor.float() for name, tensor in data.items()})
    assert _same(model, expected)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda m: nn.DataParallel(torch.compile(m))])
def test_what_torch_wraps_a_model_in_is_seen_through_both_ways(tmp_path, wrap):
    torch.save(wrap(_small(1)).state_dict(), tmp_path / "w.pt")
    for target in (_small(2), torch.compile(_small(2))):
        load_weights(target, tmp_path / "w.pt")
        assert torch.equal(target.state_dict()[next(iter(target.state_dict()))], next(iter(STATE.values())))


def test_a_safetensors_file_under_a_prefix_is_logged(tmp_path, caplog):
    save_file(_under("model.", STATE) | {"loss.weight": torch.ones(2)}, tmp_path / "w.safetensors")
    model = _small(3)
    with caplog.at_level(logging.INFO):
        load_weights(model, tmp_path / "w.safetensors")
    assert _same(model, _small(1))
    assert f"took the {len(STATE)} tensors under 'model.'; left out loss.weight" in caplog.text


def test_weights_of_the_model_within_a_wrapper_load_into_it(tmp_path):
    config = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    models = [huggingface(config=config, num_classes=3, vocab_size=50, max_length=16) for _ in range(2)]
    torch.save(models[0].model.state_dict(), tmp_path / "w.pt")
    load_weights(models[1], tmp_path / "w.pt")
    assert _same(*models)


def test_two_models_that_both_fit_are_refused(tmp_path):
    torch.save(_under("encoder_q.", STATE) | _under("encoder_k.", OTHER), tmp_path / "w.pt")
    with pytest.raises(UserError, match="w.pt fits 'encoder_q.' and 'encoder_k.' .save one of them alone"):
        load_weights(_small(3), tmp_path / "w.pt")


class _Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight


def test_tied_weights_may_stand_in_a_file_once(tmp_path):
    source, target = _Tied(), _Tied()
    save_model(source, str(tmp_path / "w.safetensors"))
    assert len(read_tensors(tmp_path / "w.safetensors", "x")) == 1
    load_weights(target, tmp_path / "w.safetensors")
    assert torch.equal(target.head.weight, source.embed.weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["features.0.weight", "features.1.running_var"])
def test_weights_that_are_not_finite_are_refused_by_name_and_count(tmp_path, name, value):
    state = copy.deepcopy(STATE)
    state[name].view(-1)[:3] = value
    state["linear.bias" if "linear.bias" in state else next(reversed(state))].view(-1)[:1] = value
    torch.save(state, tmp_path / "w.pt")
    model = _small(3)
    message = rf"checkpoint: .*w.pt: {name} holds 3 of {state[name].numel()} values that are NaN or infinite, and so do 1 more"
    with pytest.raises(UserError, match=message):
        load_weights(model, tmp_path / "w.pt")
    assert _same(model, _small(3))


def test_weights_that_are_too_large_for_the_models_type_are_refused(tmp_path):
    torch.save({"weight": torch.full((2, 2), 1e300, dtype=torch.float64), "bias": torch.zeros(2)}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="weight holds 4 of 4 values that are NaN or infinite"):
        load_weights(nn.Linear(2, 2), tmp_path / "w.pt")


class _Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))


def test_the_infinities_of_a_models_own_mask_are_no_mistake(tmp_path):
    torch.save(_Masked().state_dict(), tmp_path / "w.pt")
    load_weights(_Masked(), tmp_path / "w.pt")
    check_finite(_Masked())
    broken = _Masked()
    broken.mask[0, 0] = torch.nan
    with pytest.raises(UserError, match="model: _Masked: mask holds 4 of 9 values"):
        check_finite(broken)


def test_a_model_as_built_is_looked_at_too(monkeypatch):
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda self: nn.init.constant_(self.weight, torch.nan))
    with pytest.raises(UserError, match="model: MLP: .*weight holds 12 of 12 values that are NaN or infinite"):
        ModelSpec("optkit.models.MLP", {"input_shape": [4], "num_classes": 2, "widths": [3]}).build(0)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            lambda: torchvision("resnet18", 10).state_dict(),
            r"it holds 122 tensors \(conv1.weight \(64, 3, 7, 7\), bn1.weight \(64,\), bn1.bias \(64,\), and 119 more\), as "
            r"ResNet-18 has them; missing: 7 of the model's 8 \(features.0.weight, .*; not in the model: 122 \(conv1.weight",
        ),
        (
            lambda: SmallCNN(7, 1, [4]).state_dict(),
            r"it holds 8 tensors .*; of another shape: 2 \(\w+.weight \(7, 4\), the model's \(3, 4\)",
        ),
        (
            lambda: {"model": SmallCNN(3, 1, [4, 8]).state_dict(), "step": 3},
            r"it holds 14 tensors \(model.features.0.weight .*not in the model: 6 \(features.4.weight",
        ),
        (lambda: {"a": torch.zeros(2)}, r"it holds 1 tensor \(a \(2,\)\); missing: 7 of the model's 8 "),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_described_by_what_it_holds(tmp_path, state, message):
    torch.save(state(), tmp_path / "w.pt")
    with pytest.raises(UserError, match=rf"model.checkpoint: .*w.pt does not fit SmallCNN: {message}") as caught:
        load_weights(SmallCNN(3, 1, [4]), tmp_path / "w.pt", "model.checkpoint")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (lambda: torchvision("resnet18"), "ResNet-18"),
        (lambda: torchvision("resnet34"), "ResNet-34"),
        (lambda: torchvision("resnet50"), "ResNet-50"),
        (lambda: torchvision("resnet101"), "ResNet-101"),
        (lambda: torchvision("wide_resnet50_2"), "ResNet-50"),
        (lambda: ResNetCIFAR(20), "ResNet-20 for CIFAR"),
        (lambda: torchvision("vit_b_16"), "a ViT of torchvision"),
        (lambda: torchvision("swin_t"), "a Swin transformer"),
        (lambda: torchvision("mobilenet_v2"), "MobileNetV2 of torchvision"),
        (lambda: torchvision("efficientnet_b0"), "EfficientNet or MobileNetV3 of torchvision"),
        (lambda: torchvision("densenet121"), "DenseNet of torchvision"),
        (lambda: torchvision("convnext_tiny"), "ConvNeXt of torchvision"),
        (lambda: SmallCNN(), None),
    ],
)
def test_networks_are_known_by_the_names_of_their_tensors(network, words):
    with torch.device("meta"):
        assert guess(network().state_dict()) == words


def test_code_in_a_file_is_named_and_not_run(tmp_path):
    import argparse

    torch.save({"state_dict": STATE, "hyper_parameters": argparse.Namespace(lr=1)}, tmp_path / "w.ckpt")
    with pytest.raises(
        UserError, match=r"cannot read .*w.ckpt: it names code \(argparse.Namespace\), which is not run"
    ):
        load_weights(_small(3), tmp_path / "w.ckpt")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"epoch": 3, "name": "x"}, "holds no tensors by name, but a dictionary of epoch, name"),
        ([1, 2], "holds no tensors by name, but list"),
        (torch.zeros(2), "holds no tensors by name, but Tensor"),
    ],
)
def test_a_file_without_named_tensors_says_what_it_holds(tmp_path, data, message):
    torch.save(data, tmp_path / "w.pt")
    with pytest.raises(UserError, match=message):
        load_weights(_small(3), tmp_path / "w.pt")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_damaged_files_load_or_are_refused(tmp_path, suffix):
    path = tmp_path / f"w.{suffix}"
    torch.save(STATE, path) if suffix == "pt" else save_file(STATE, path)
    whole = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for attempt in range(60):
        damaged = bytearray(whole[: max(1, len(whole) * attempt // 60)] if attempt % 2 else whole)
        for place in torch.randint(0, min(len(damaged), 2000), (20,), generator=generator).tolist():
            damaged[place] = (damaged[place] + 1 + attempt) % 256
        path.write_bytes(bytes(damaged))
        with suppress(UserError):  # and nothing else
            load_weights(_small(3), path)


def test_two_tensors_of_one_name_are_refused(tmp_path):
    torch.save(STATE | _under("_orig_mod.", OTHER), tmp_path / "w.pt")
    with pytest.raises(UserError, match="w.pt holds tensors that have one name without _orig_mod"):
        load_weights(_small(3), tmp_path / "w.pt")
