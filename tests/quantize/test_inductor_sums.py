"""Sums that inductor fuses into int8 kernels write into buffers of their own, never into a caller's or a parameter."""

import copy

import pytest
import torch
from torch import nn

from optkit import engines
from optkit.engines import Inductor, inductor_int8
from optkit.quantize import quantize_dynamic, quantize_static

pytestmark = pytest.mark.slow


class LinearSums(nn.Module):
    """Sums of a linear and something that is not the graph's to write to."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(8))
        self.place, self.row = nn.Parameter(torch.randn(1, 6, 32)), nn.Parameter(torch.randn(1, 6, 1, 32))
        self.register_buffer("offset", torch.randn(1, 6, 32))

    def forward(self, x, y, flat, wide):
        a, b, c, d, e, f, g, h = (layer(x) for layer in self.layers)
        kept = y * 2
        return (
            y + a,
            self.place + b,
            self.offset + c,
            flat.view(-1, 6, 32) + d,
            self.row.squeeze(2) + e,
            wide[:, :6] + f,
            kept + g,  # read again below, through a view
            kept.transpose(1, 2).cos(),
            wide[:, :1].expand(-1, 6, 32) + h,
        )


class ConvSums(nn.Module):
    """The same of convolutions."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(6))
        self.place = nn.Parameter(torch.randn(1, 8, 6, 6))
        self.register_buffer("last", torch.randn(1, 8, 6, 6).to(memory_format=torch.channels_last))

    def forward(self, x, y, flat, wide):
        a, b, c, d, e, f = (layer(x) for layer in self.layers)
        return (
            y + a,
            (self.place + b).relu(),
            self.last + c,
            flat.view(-1, 8, 6, 6) + d,
            (wide[:, :8] + e).relu(),
            wide[:, :1].expand(-1, 8, 6, 6) + f,
        )


CASES = {
    "linear": (LinearSums, [(1, 6, 32), (1, 6, 32), (1, 192), (1, 9, 32)]),
    "conv": (ConvSums, [(1, 8, 6, 6), (1, 8, 6, 6), (1, 288), (1, 11, 6, 6)]),
}


@pytest.mark.parametrize(("kind", "dynamic"), [("linear", False), ("linear", True), ("conv", False)])
def test_a_sum_changes_neither_inputs_nor_parameters_and_its_answers_do_not_drift(kind, dynamic):
    torch.manual_seed(0)
    build, shapes = CASES[kind]
    model = build().eval()
    x = tuple(torch.randn(shape) for shape in shapes)
    example = tuple(torch.cat([t, t]) for t in x)
    int8 = quantize_dynamic(model, example) if dynamic else quantize_static(model, example, [example])
    session = engines.compile(int8.module, x, engine=Inductor(cpp_wrapper=kind == "conv"))
    before, state = copy.deepcopy(x), copy.deepcopy(int8.module.state_dict())
    with torch.no_grad():
        expected = model(*x)
    first = copy.deepcopy(session(*x))
    for _ in range(2):
        again = session(*x)
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(x, before, strict=True))
    assert all(torch.equal(value, state[name]) for name, value in int8.module.state_dict().items())
    for answer, float_answer in zip(first, expected, strict=True):
        assert (answer - float_answer).square().mean() < 1e-3 * float_answer.square().mean()


class Residual(nn.Module):
    """An ordinary block: each sum's other term is a buffer that is read for the last time."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.up, self.down, self.head = (
            nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 4),
        )  # fmt: skip

    def forward(self, x):
        x = self.stem(x).relu()
        x = (x + self.conv(x)).relu()
        x = self.norm(x.flatten(2).transpose(1, 2))
        return self.head((x + self.down(self.up(x).relu())).mean(1))


def test_the_sums_of_an_ordinary_residual_block_stay_in_place(monkeypatch):
    sums = []

    def spy(graph):
        before = [_sum(node) for node in graph.nodes]
        keep(graph)
        sums.append((before, [_sum(node) for node in graph.nodes]))

    def _sum(node):
        names = ("binary_op_name", "binary_post_op", "binary_attr")
        return None if inductor_int8.int8_kernel(node) is None else inductor_int8._argument(node, *names)

    keep = inductor_int8.keep_sums_apart
    monkeypatch.setattr(inductor_int8, "keep_sums_apart", spy)
    torch.manual_seed(0)
    model, x = Residual().eval(), torch.randn(4, 3, 8, 8)
    int8 = quantize_static(model, (x,), [(x,)]).module
    session = engines.compile(int8, (x,), engine=Inductor(cpp_wrapper=False))
    ((before, after),) = sums
    assert before == after  # nothing is copied either
    assert after.count("sum") == 2
    with torch.no_grad():
        torch.testing.assert_close(session(x), int8(x), atol=0.02, rtol=0)
