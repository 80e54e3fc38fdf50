"""Computed weights become weights, padding by name gets numbers, one-dimensional convolutions run in int8."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from optkit import engines
from optkit.engines import ENGINES, Inductor
from optkit.quantize import quantize_dynamic, quantize_static
from optkit.quantize.graph.float_layers import float_layers
from optkit.quantize.static import export_graph


class Standardized(nn.Conv2d):
    """Weight standardization."""

    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.var((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        return self._conv_forward(x, w, self.bias)


class Product(nn.Module):
    """A linear whose weight is a product of parameters."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.left, self.right = nn.Parameter(torch.randn(8, 4)), nn.Parameter(torch.randn(4, 16))

    def forward(self, x):
        return nn.functional.linear(self.first(x).relu(), torch.einsum("oi,ij->jo", self.left, self.right))


class Again(nn.Module):
    """Calls one layer with a computed weight twice."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 8)

    def forward(self, x):
        return self.last(self.layer(self.layer(x).relu()))


class Written(nn.Module):
    """Writes into what it computed, between two readers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        weight = self.layer.weight * 1.0
        x = nn.functional.linear(x, weight)
        weight[:4] = 0
        return self.layer(nn.functional.linear(x, weight))


def weight_norm(layer):
    return parametrizations.weight_norm(layer)


SHAPE = (3, 8, 8)
COMPUTED = {
    "weight_norm": (lambda: nn.Sequential(weight_norm(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8), nn.ReLU()), SHAPE, 1),
    "old weight_norm": (lambda: nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU()), SHAPE, 1),
    "standardized": (lambda: nn.Sequential(Standardized(3, 8, 3), nn.BatchNorm2d(8)), SHAPE, 1),
    "orthogonal": (lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(8, 8))), (8,), 1),
    "spectral": (lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(8, 8))), (8,), 1),
    "einsum": (Product, (8,), 2),
    "called twice": (Again, (8,), 3),
}


@pytest.mark.parametrize("name", COMPUTED)
@pytest.mark.parametrize("target", ["inductor", "onnxruntime", "openvino"])
def test_weights_that_the_graph_computes_are_int8(name, target):
    torch.manual_seed(0)
    build, shape, layers = COMPUTED[name]
    model, x = build().eval(), torch.randn(16, *shape)
    found = quantize_static(model, (x,), [(x,)], target=target).module
    read = [node.args[0].target for node in found.graph.nodes if "dequantize_per_channel" in str(node.target)]
    assert len(read) == layers
    assert not float_layers(found)
    # what the weights were computed from is gone, and a layer that runs twice has one weight
    weights = {node.target for node in found.graph.nodes if node.op == "get_attr" and "frozen" in str(node.target)}
    assert {x.dtype for x in found.state_dict().values() if x.dim() > 1} == {torch.int8}
    assert len(weights) <= layers
    with torch.no_grad():
        expected = model(x)
        assert (found(x) - expected).square().mean() < 10**-3.5 * expected.square().mean()


def test_a_graph_with_folded_weights_answers_as_before_and_names_layers_by_their_place():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Sequential(weight_norm(nn.Linear(8, 8))), Product()).eval(), torch.randn(4, 8)
    graph = export_graph(model, (x,), "openvino")
    assert {name for name, _ in graph.named_parameters()} == {
        "0.0.weight", "0.0.bias", "1.first.weight", "1.first.bias", "1.weight",
    }  # fmt: skip
    assert "parametrizations" not in str(dict(graph.named_buffers()))
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x))
    assert "parametrizations" in str(dict(model.named_parameters()))


def test_a_computed_tensor_that_the_graph_writes_to_is_not_folded():
    torch.manual_seed(0)
    model, x = Written().eval(), torch.randn(4, 8)
    graph = export_graph(model, (x,), "openvino")
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x))


def test_dynamic_int8_folds_computed_weights_too():
    torch.manual_seed(0)
    model, x = Again().eval(), torch.randn(4, 8)
    found = quantize_dynamic(model, (x,)).module
    assert sum("dequantize_per_channel" in str(node.target) for node in found.graph.nodes) == 3
    with torch.no_grad():
        assert (found(x) - model(x)).square().mean() < 1e-3 * model(x).square().mean()


def convolution(dimensions, **options):
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    return nn.Sequential(kind(3, 4, **options), nn.ReLU()).eval(), torch.randn(2, 3, *[9] * dimensions)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("options", [{"kernel_size": 4}, {"kernel_size": 3, "dilation": 2}, {"kernel_size": 2}])
def test_padding_by_name_gives_what_torch_gives(dimensions, padding, options):
    torch.manual_seed(0)
    model, x = convolution(dimensions, padding=padding, **options)
    graph = export_graph(model, (x,), "openvino")
    assert not any(str(node.target).endswith(".padding") for node in graph.graph.nodes)
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x))
        bigger = torch.randn(3, 3, *[9] * dimensions)
        torch.testing.assert_close(graph(bigger), model(bigger))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["inductor", "onnxruntime", "openvino"])
def test_convolutions_with_padding_by_name_are_int8_on_every_engine(target):
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 4, padding="same"), nn.ReLU(), nn.Conv2d(8, 8, (3, 2), dilation=(2, 1), padding="same"),
        nn.Conv2d(8, 8, 3, padding="valid"), nn.Flatten(), nn.Linear(8 * 36, 4),
    ]  # fmt: skip
    model, x = nn.Sequential(*layers).eval(), torch.randn(8, 3, 8, 8)
    int8 = quantize_static(model, (x,), [(x,)], target=target).module
    assert not float_layers(int8)
    session = engines.compile(int8, (x,), engine=ENGINES[target]().for_trials())
    assert 0.9 < session.facts()["int8_share"] <= 1.02
    with torch.no_grad():
        torch.testing.assert_close(session(x), int8(x), atol=0.02, rtol=0)
        assert (session(x) - model(x)).square().mean() < 1e-3 * model(x).square().mean()


class OneDimension(nn.Module):
    """Padded convolutions of one dimension, before all that reads their shape."""

    def __init__(self):
        super().__init__()
        self.first, self.relu, self.second = nn.Conv1d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv1d(16, 16, 5, 2, 2)
        self.third, self.group = nn.Conv1d(16, 16, 3, padding=2, dilation=2, groups=4), nn.GroupNorm(4, 16)
        self.layer, self.head, self.flat = nn.LayerNorm(16), nn.Linear(16, 4), nn.Linear(16 * 6, 4)

    def forward(self, x):
        x = self.second(self.relu(self.first(x)))  # (N, 16, 6)
        y = self.group(self.third(x).relu() + x)
        return self.head(self.layer(y.transpose(1, 2))).mean(1) + self.flat(x.flatten(1))


@pytest.mark.slow
def test_one_dimensional_convolutions_run_in_int8_on_inductor_and_count_once():
    torch.manual_seed(0)
    model, x = OneDimension().eval(), torch.randn(4, 8, 12)
    int8 = quantize_static(model, (x,), [(x,)]).module
    stored = copy.deepcopy(int8.state_dict())
    session = engines.compile(int8, (x,), engine=Inductor(cpp_wrapper=False))
    assert session.facts()["int8_share"] == pytest.approx(1)
    with torch.no_grad():
        expected, graph = model(x), int8(x)
    for _ in range(2):
        assert (session(x) - graph).square().mean() < 1e-4 * graph.square().mean()
    assert 10 * math.log10(expected.square().mean() / (session(x) - expected).square().mean()) > 30
    assert {k: v.shape for k, v in int8.state_dict().items()} == {k: v.shape for k, v in stored.items()}
