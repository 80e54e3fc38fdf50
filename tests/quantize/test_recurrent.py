"""Recurrent layers are exported without being unrolled, and named among what stays in float."""

import pytest
import torch
from torch import nn

from optkit.core.compat.torch_tracing import recurrence_by_shape
from optkit.quantize import StaticQuantization, quantize_static
from optkit.quantize.graph.float_layers import left_in_float
from optkit.quantize.static import export_graph

LAYERS = {
    "gru": lambda: nn.GRU(8, 16, 2, bidirectional=True, batch_first=True),
    "lstm": lambda: nn.LSTM(8, 16, batch_first=True, bidirectional=True),
    "projected": lambda: nn.LSTM(8, 16, 2, batch_first=True, proj_size=4),
    "rnn": lambda: nn.RNN(8, 16, nonlinearity="relu", batch_first=True),
    "tanh": lambda: nn.RNN(8, 16, batch_first=True, bias=False),
}


class Recurrent(nn.Module):
    def __init__(self, layer, width):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 4)

    def forward(self, x):
        steps, state = self.layer(x)
        last = state[0] if isinstance(state, tuple) else state
        return self.head(steps).mean(1) + last.mean((0, 2))[:, None]


@pytest.fixture(params=LAYERS)
def model(request):
    torch.manual_seed(0)
    layer = LAYERS[request.param]()
    return Recurrent(layer, layer(torch.randn(1, 1, 8))[0].shape[-1]).eval()


def test_an_export_learns_shapes_without_running_the_steps(model, monkeypatch):
    def step(*_):
        raise AssertionError("a step was run")

    monkeypatch.setattr("torch._decomp.decompositions.gru_cell", step)
    monkeypatch.setattr("torch._decomp.decompositions.one_layer_rnn", step)
    monkeypatch.setattr("torch._decomp.decompositions.one_layer_lstm", step)
    graph = export_graph(model, (torch.randn(2, 6, 8),), "openvino")
    for batch in (1, 5):
        x = torch.randn(batch, 6, 8)
        with torch.no_grad():
            torch.testing.assert_close(graph(x), model(x))


def test_torch_is_as_before_after_an_export():
    operator = torch.ops.aten.gru.input
    before = dict(operator.py_kernels)
    with recurrence_by_shape():
        assert operator.py_kernels != before
    assert operator.py_kernels == before


def test_what_stays_in_float_is_said_with_the_reason(context, caplog):
    torch.manual_seed(0)
    model, x = Recurrent(nn.GRU(8, 16, batch_first=True), 16).eval(), torch.randn(4, 6, 8)
    found = quantize_static(model, (x,), [(x,)], target="openvino")
    assert left_in_float(found.module) == {"layer": "a recurrent layer"}
    with caplog.at_level("WARNING"):
        facts = StaticQuantization(target="openvino").outcome(found, context()).facts
    assert facts["left_in_float"] == {"layer": "a recurrent layer"}
    assert "stay in float: layer (a recurrent layer)" in caplog.text


class Kinds(nn.Module):
    """A layer for each reason."""

    def __init__(self):
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 4, 1)
        self.kept, self.head = nn.Linear(4, 4), nn.Linear(4, 4)
        self.matrix = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        x = self.kept(self.up(self.conv(x)).flatten(2).mean(2)) @ self.matrix
        return nn.functional.linear(self.head(x), x[:4])


def test_each_reason_is_told_apart():
    torch.manual_seed(0)
    model, x = Kinds().eval(), torch.randn(8, 3, 4, 4)
    found = quantize_static(model, (x,), [(x,)], target="openvino", protect=("kept",))
    reasons = left_in_float(found.module, found.protect)
    assert reasons.pop("kept") == "protected"
    assert reasons.pop("up") == "a transposed convolution"
    assert sorted(reasons.values()) == [
        "aten.matmul.default multiplies with a parameter and is no linear layer", "its weight depends on the input",
    ]  # fmt: skip
