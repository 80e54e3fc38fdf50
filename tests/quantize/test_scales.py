"""Scales are as small as weights and activations ask for; on no engine is anything lost to a floor."""

import pytest
import torch
from torch import nn

from optkit import engines
from optkit.engines import ENGINES
from optkit.quantize import quantize_dynamic, quantize_static, quantize_weight_only
from optkit.quantize.accuracy.gptq import gptq
from optkit.quantize.graph.observers import OBSERVERS, ActivationObserver, Grid, Statistics, WeightObserver
from optkit.quantize.qat.fake_quant import LearnedScales, MaxScales

TINY = [1e-6, 1e-12, 1e-30]


def sqnr(expected, actual):
    """In dB."""
    expected, actual = expected.detach().double(), actual.detach().double()
    return float(10 * (expected.square().mean() / (actual - expected).square().mean()).log10())


@pytest.mark.parametrize("size", TINY)
@pytest.mark.parametrize("symmetric", [False, True])
def test_every_scheme_gives_an_activation_of_any_size_the_same_integers(size, symmetric):
    torch.manual_seed(0)
    x, grid = torch.randn(4, 1000), Grid(symmetric)
    for name, scheme in OBSERVERS.items():
        found = []
        for factor in (1.0, size):
            statistics = Statistics()
            for batch in x:
                statistics.add(batch * factor, histogram=True)
            low, high = (torch.tensor([end]) for end in scheme(statistics, grid))
            found.append([float(number) for number in grid.affine(low, high)])
        (scale, zero_point), (small_scale, small_zero_point) = found
        assert small_scale / size == pytest.approx(scale, rel=0.02), name
        assert abs(small_zero_point - zero_point) <= 3


def test_what_is_always_zero_has_a_scale_of_one():
    observer, weights = ActivationObserver(), WeightObserver(dtype=torch.int8, quant_min=-127, quant_max=127)
    observer(torch.zeros(4))
    weights(torch.tensor([[0.0, 0.0], [127.0, 1.0], [1e-44, 0.0]]))
    assert float(observer.calculate_qparams()[0]) == 1
    scales = weights.calculate_qparams()[0]
    assert scales[:2].tolist() == [1, 1]
    assert scales[2] > 0
    assert torch.isfinite(1 / scales).all()  # the reciprocal is what kernels multiply with


@pytest.mark.parametrize("size", TINY)
def test_fake_quantization_keeps_tiny_weights(size):
    torch.manual_seed(0)
    weight = torch.randn(4, 64)
    weight[1] = 0
    small = weight * size
    learned, largest = LearnedScales(small, 127), MaxScales(127)
    for fake in (learned, largest):
        assert sqnr(small, fake(small)) > 35
    learned(small).sum().backward()
    assert torch.isfinite(learned.scale.ratio.grad).all()


class Rescaled(nn.Module):
    """Makes up behind a linear for channels with tiny weights, another of zeros."""

    def __init__(self, size):
        super().__init__()
        self.layer = nn.Linear(16, 8)
        self.register_buffer("factor", torch.ones(8))
        self.factor[:4] = 1 / size
        with torch.no_grad():
            for parameter in (self.layer.weight, self.layer.bias):
                parameter[:4] *= size
            self.layer.weight[7] = 0

    def forward(self, x):
        return self.layer(x) * self.factor


class Small(nn.Module):
    """A convolution that gives tiny activations, and one whose weights make up for it."""

    def __init__(self, size):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            self.first.weight *= size
            self.first.bias *= size
            self.second.weight /= size

    def forward(self, x):
        return self.second(self.first(x).relu()).mean((2, 3))


class Dead(nn.Module):
    """Channels of zeros and of tiny weights, whose biases are large in steps of such scales."""

    def __init__(self, size):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
        with torch.no_grad():
            self.first.weight[:2] = 0
            self.first.weight[2:4] *= size
            self.first.bias.uniform_(1, 2)
            self.last.weight[1] *= size
            self.last.weight[2] = 0

    def forward(self, x):
        return self.last(self.first(x).relu().flatten(2).transpose(1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["inductor", "onnxruntime", "openvino"])
@pytest.mark.parametrize("build", [Rescaled, Small, Dead])
def test_int8_keeps_what_is_tiny_in_the_graph_and_on_the_engine(build, target):
    torch.manual_seed(0)
    model, x = build(1e-20).eval(), torch.randn(16, 16) if build is Rescaled else torch.randn(8, 3, 8, 8)
    int8 = quantize_static(model, (x,), [(x,)], target=target).module
    session = engines.compile(int8, (x,), engine=ENGINES[target]().for_trials())
    assert sqnr(model(x), int8(x)) > 33
    assert sqnr(model(x), session(x)) > 33


@pytest.mark.slow
@pytest.mark.parametrize("target", ["inductor", "onnxruntime"])
def test_dynamic_int8_has_no_floor_either(target):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8)).eval(), torch.randn(8, 16)
    with torch.no_grad():
        model[0].weight *= 1e-20
        model[0].bias *= 1e-20
        model[2].weight *= 1e20
    int8 = quantize_dynamic(model, (x,), target=target).module
    session = engines.compile(int8, (x,), engine=ENGINES[target]().for_trials())
    assert sqnr(model(x), int8(x)) > 35
    assert sqnr(model(x), session(x)) > 35


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("size", [1, 1e-6, 1e-20])
def test_weight_only_keeps_tiny_weights_and_constant_groups(bits, size):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32, bias=False)).eval()
    with torch.no_grad():
        model[0].weight[0], model[0].weight[1] = 0, 0.3
        model[0].weight *= size
    found = quantize_weight_only(model, bits=bits, group_size=32).module[0].float_weight()
    expected = model[0].weight
    assert sqnr(expected, found) > (40 if bits == 8 else 18)
    assert found[0].abs().max() == 0
    torch.testing.assert_close(found[1], expected[1], rtol=0.01, atol=0)


def test_gptq_rounds_by_small_inputs_as_by_large_ones():
    torch.manual_seed(0)
    weight, x = torch.randn(1, 8, 16), torch.randn(1, 200, 16) @ torch.randn(16, 16)
    moment = (x.transpose(1, 2) @ x / 200).double()

    def nearest(value, _):
        return (value / 0.25).round() * 0.25

    torch.testing.assert_close(gptq(weight, moment * 1e-12, nearest), gptq(weight, moment, nearest))
