"""Batch norms are folded where that changes nothing, and stay where it would."""

import copy

import pytest
import torch
from torch import nn

from optkit.core.errors import StageError
from optkit.quantize import convert_qat, prepare_qat, quantize_static
from optkit.quantize.graph.annotate import calls
from optkit.quantize.graph.norms import BATCH_NORM, fold_norms


class Pair(nn.Module):
    """Two convolutions, each with its norm, that share what ``shared`` names."""

    def __init__(self, shared):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        setattr(self.second, shared, getattr(self.first, shared))
        self.norm1, self.norm2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm2(self.second(self.norm1(self.first(x)).relu()))


class ReadTwice(nn.Module):
    """A convolution that a norm and another operator read, and one that two norms read."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.norm1, self.norm2, self.norm3 = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)

    def forward(self, x):
        x = self.first(x)
        x = self.second(self.norm1(x) + x)
        return self.norm2(x) * self.norm3(x)


class Stem(nn.Sequential):
    """A convolution, so that there is something to quantize, before other layers."""

    def __init__(self, *layers):
        super().__init__(nn.Conv2d(4, 8, 1), *layers)


ALL = ("inductor", "onnxruntime", "openvino")
# the model, the shape of an example, and how many norms are left
CASES = {
    "shared bias": (lambda: Pair("bias"), (4, 6, 6), 0),
    "shared weight": (lambda: Pair("weight"), (4, 6, 6), 2),
    "output read twice": (ReadTwice, (4, 6, 6), 3),
    "transposed": (lambda: Stem(nn.ConvTranspose2d(8, 6, 3, 2), nn.BatchNorm2d(6)), (4, 6, 6), 0),
    "grouped transposed": (lambda: Stem(nn.ConvTranspose2d(8, 6, 3, groups=2), nn.BatchNorm2d(6)), (4, 6, 6), 0),
    "grouped": (lambda: Stem(nn.Conv2d(8, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6)), (4, 6, 6), 0),
    "1d": (lambda: nn.Sequential(nn.Conv1d(4, 8, 3), nn.BatchNorm1d(8)), (4, 8), 0),
    "1d transposed": (
        lambda: nn.Sequential(nn.Conv1d(4, 8, 3), nn.ConvTranspose1d(8, 8, 3, groups=4), nn.BatchNorm1d(8)), (4, 8), 0,
    ),
    "3d": (lambda: nn.Sequential(nn.Conv3d(4, 8, 3, bias=False), nn.BatchNorm3d(8)), (4, 4, 4, 4), 0),
    "no affine": (lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8, affine=False)), (4, 6, 6), 0),
    "linear": (lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)), (4,), 0),
    "linear of sequences": (lambda: nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4)), (4, 8), 1),
    "statistics of the batch": (
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)), (4, 6, 6), 1,
    ),
}  # fmt: skip


def lived_in(model):
    """Batch norms as after a training."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is not None:
                module.running_mean.normal_(0, 1)
                module.running_var.uniform_(0.1, 0.5)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
    return model.eval()


@pytest.fixture(params=CASES)
def case(request):
    torch.manual_seed(0)
    build, shape, left = CASES[request.param]
    return lived_in(build()), torch.randn(16, *shape), left


def test_folding_changes_no_answer_and_leaves_the_norms_that_others_need(case):
    model, x, left = case
    graph = torch.export.export(copy.deepcopy(model), (x,)).module()
    fold_norms(graph)
    assert len(calls(graph, {BATCH_NORM})) == left
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model.double()(x.double()).float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("target", ALL)
def test_int8_with_a_folded_norm_is_close_to_float_on_every_target(case, target):
    model, x, _ = case
    if target == "inductor" and x.dim() == 5:  # the only layer is one that stays in float there
        with pytest.raises(StageError, match=r"no operator .* quantized: 0 \(the engine has no int8 kernel for it\)"):
            quantize_static(model, (x,), [(x,)], target=target)
        return
    found = quantize_static(model, (x,), [(x,)], target=target).module
    with torch.no_grad():
        expected = model(x)
        assert (found(x) - expected).square().mean() < 10**-3.5 * expected.square().mean()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_norm_in_half_precision_keeps_its_eps(dtype):
    """The variance of a dead channel is 0, and 1e-5 would be lost beside it, or be half of its value."""
    torch.manual_seed(0)
    model = lived_in(nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)))
    model[1].running_var[:4] = torch.tensor([0, 1e-7, 1e-6, 1e-5])
    model, x = model.to(dtype), torch.randn(16, 4, 6, 6).to(dtype)
    graph = torch.export.export(copy.deepcopy(model), (x,)).module()
    fold_norms(graph)
    assert not calls(graph, {BATCH_NORM})
    with torch.no_grad():
        expected, actual = model.double()(x.double()), graph(x).double()
    by_channel = (actual - expected).square().mean((0, 2, 3)) / expected.square().mean((0, 2, 3))
    assert by_channel.max() < (1e-5 if dtype == torch.float16 else 1e-3)


@pytest.mark.parametrize("name", ["shared bias", "shared weight", "grouped transposed"])
def test_a_norm_that_is_trained_for_int8_is_folded_alike(name):
    torch.manual_seed(0)
    build, shape, _ = CASES[name]
    model, x = lived_in(build()), torch.randn(16, *shape)
    prepared = prepare_qat(model, (x,), [(x,)], target="openvino")
    prepared.module.train()
    prepared.module(x).square().mean().backward()
    with torch.no_grad():
        for parameter in prepared.module.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad
    trained = prepared.module.eval()
    with torch.no_grad():
        expected, actual = trained(x), convert_qat(prepared).module(x)
    assert (actual - expected).square().mean() < 1e-4 * expected.square().mean()
