"""Operators with rules of their own, and rules that fail."""

import logging

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from optkit.core.errors import UserError
from optkit.prune.structured import prune_structured
from optkit.prune.trace.rules import dispatch
from tests.prune import zoo

VECTOR = (torch.randn(4, 8, generator=torch.Generator().manual_seed(0)),)
IMAGE = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)
SEQUENCE = (torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)),)


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.enter, self.cell = nn.Linear(8, 32), kind(32, 24, batch_first=True, **options)
        self.mix, self.head = nn.Linear(24 * (2 if self.cell.bidirectional else 1), 20), nn.Linear(20, 4)

    def forward(self, x):
        return self.head(self.mix(self.cell(self.enter(x).relu())[0]).relu())


@pytest.mark.parametrize(
    ("kind", "options", "operator"),
    [
        (nn.LSTM, {}, "lstm"),
        (nn.LSTM, {"bidirectional": True, "num_layers": 2, "bias": False}, "lstm"),
        (nn.LSTM, {"proj_size": 24, "hidden": 30}, "lstm"),
        (nn.GRU, {}, "gru"),
        (nn.RNN, {"nonlinearity": "relu"}, "rnn_relu"),
    ],
)
def test_recurrent_layers_keep_their_width_alone(kind, options, operator):
    def make():
        if "hidden" in options:
            return Recurrent(lambda n, h, **o: nn.LSTM(n, options["hidden"], **o), proj_size=24)
        return Recurrent(kind, **options)

    torch.manual_seed(0)
    model = zoo.randomize(make())
    pruned = prune_structured(model, SEQUENCE, amount=0.15)
    width = pruned.module.enter.out_features
    assert width == pruned.module.cell.input_size == pruned.module.cell.weight_ih_l0.shape[1] < 32
    assert pruned.module.mix.out_features < 20
    assert pruned.plan.frozen["cell.weight_hh_l0[1]"] == [f"{operator} in cell"]
    assert pruned.plan.frozen["mix.weight[1]"] == [f"{operator} in cell"]
    zoo.assert_exact(model, pruned, SEQUENCE)
    zoo.assert_replays(make, pruned, SEQUENCE)
    pruned.module.train()(*SEQUENCE).sum().backward()
    assert pruned.module.cell.weight_ih_l0.grad.shape == (pruned.module.cell.weight_ih_l0.shape[0], width)


class Bilinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.both, self.head = (
            nn.Linear(8, 32),
            nn.Linear(8, 24),
            nn.Bilinear(32, 24, 16),
            nn.Linear(16, 4),
        )

    def forward(self, x):
        return self.head(self.both(self.a(x).relu(), self.b(x).sigmoid()).relu())


def test_bilinear_layers_are_cut_on_all_sides():
    model = zoo.randomize(Bilinear())
    pruned = prune_structured(model, VECTOR, amount=0.5, scope="local")
    both = pruned.module.both
    assert both.in1_features < 32
    assert both.in2_features < 24
    assert both.out_features < 16
    zoo.assert_exact(model, pruned, VECTOR)
    zoo.assert_replays(Bilinear, pruned, VECTOR)


class Deformed(nn.Module):
    def __init__(self, groups=1):
        super().__init__()
        self.a, self.offset = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 18, 3, padding=1)
        self.deform = torchvision.ops.DeformConv2d(16, 24, 3, padding=1, groups=groups)
        self.head = nn.Conv2d(24, 4, 1)

    def forward(self, x):
        x = self.a(x).relu()
        return self.head(self.deform(x, self.offset(x)).relu())


def test_deformable_convolutions_keep_their_offsets():
    model = zoo.randomize(Deformed())
    pruned = prune_structured(model, IMAGE, amount=0.4)
    assert pruned.module.deform.out_channels < 24
    assert pruned.module.deform.in_channels == pruned.module.a.out_channels < 16
    assert pruned.plan.frozen["offset.weight[0]"] == ["deform_conv2d in deform"]
    zoo.assert_exact(model, pruned, IMAGE)
    with pytest.raises(UserError, match="because of deform_conv2d in deform"):
        prune_structured(Deformed(groups=2).eval(), IMAGE, amount=0.1)


class Warped(nn.Module):
    """A spatial transformer: what is sampled can be cut, the grid cannot."""

    def __init__(self):
        super().__init__()
        self.a, self.theta, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 6), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        x = self.a(x).relu()
        grid = F.affine_grid(self.theta(x.mean((2, 3))).view(-1, 2, 3), x.shape, align_corners=False)
        return self.head(F.grid_sample(x, grid, align_corners=False))


def test_sampled_grids():
    model = zoo.randomize(Warped())
    pruned = prune_structured(model, IMAGE, amount=0.4)
    assert pruned.module.a.out_channels < 16
    zoo.assert_exact(model, pruned, IMAGE)


class Spectral(nn.Module):
    """A Fourier layer with complex weights, one matrix for each frequency that is kept."""

    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 4, 1)
        self.weight = nn.Parameter(torch.randn(12, 12, 4, 4, dtype=torch.cfloat) / 4)

    def forward(self, x):
        x = self.a(x).relu()
        low = torch.einsum("bixy,ioxy->boxy", torch.fft.rfft2(x)[:, :, :4, :4], self.weight)
        return self.head(torch.fft.irfft2(low, s=x.shape[-2:]).relu())


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 16, dtype=torch.cfloat), nn.Linear(16, 16, dtype=torch.cfloat)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        x = self.b(torch.complex(self.a(x + 0j).real.relu(), torch.zeros(())))
        return self.head(torch.view_as_real(x).flatten(1)).abs(), x.conj().sum(1)


@pytest.mark.parametrize(("make", "inputs"), [(Spectral, IMAGE), (Complex, VECTOR)])
@pytest.mark.filterwarnings("error::UserWarning")
def test_complex_weights_are_cut(make, inputs):
    torch.manual_seed(0)
    model = zoo.randomize(make())
    pruned = prune_structured(model, inputs, amount=0.3)
    assert 0.2 < zoo.share(pruned) < 0.4
    zoo.assert_exact(model, pruned, inputs)
    zoo.assert_replays(make, pruned, inputs)


class Cumulative(nn.Module):
    """Reductions in their rarer forms, inside a module of their own."""

    def __init__(self, function):
        super().__init__()
        self.a, self.inner, self.c = nn.Linear(8, 32), nn.Identity(), nn.Linear(32, 4)
        self.inner.forward = function

    def forward(self, x):
        return self.c(self.inner(self.a(x)))


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (lambda h: h / (1 + torch.std_mean(h, 1, keepdim=True)[0]), "std_mean"),
        (lambda h: h.cummax(-1).values, "cummax"),
        (lambda h: h.sort(-1).values, "sort"),
        (lambda h: h.softmax(-1), "softmax"),
        (lambda h: h.logcumsumexp(-1), "logcumsumexp"),
    ],
)
def test_what_mixes_channels_is_named_with_its_module(function, operator):
    model = Cumulative(function).eval()
    reason = f"{operator} in inner"
    with pytest.raises(UserError, match=f"nothing in this model can be cut, because of {reason}"):
        prune_structured(model, VECTOR, amount=0.3)


def test_a_rule_that_fails_is_logged_and_keeps_things_whole(monkeypatch, caplog, no_rule_fails):
    def broken(trace, out, x, dim, *_, **__):
        return {}[dim]

    monkeypatch.setitem(dispatch._RULES, "softmax", broken)
    model = nn.Sequential(nn.Linear(8, 32), nn.Softmax(0), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    with caplog.at_level(logging.ERROR):
        pruned = prune_structured(model, VECTOR, amount=0.2)
    assert "the rule for softmax in 1 fails, and what reaches it stays whole: KeyError: 0" in caplog.text
    assert pruned.module[0].out_features == 32
    assert pruned.plan.frozen["0.weight[0]"] == ["softmax in 1"]
    zoo.assert_exact(model, pruned, VECTOR)
    assert no_rule_fails  # the tests notice
    no_rule_fails.clear()


def test_labels_that_do_not_fit_the_result_are_a_failure_of_the_rule(monkeypatch, caplog, no_rule_fails):
    monkeypatch.setitem(dispatch._RULES, "softmax", lambda trace, out, x, dim, *_, **__: x.axes)
    model = nn.Sequential(nn.Linear(8, 32), nn.Softmax(0), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    prune_structured(model, VECTOR, amount=0.2)
    assert "the rule for softmax in 1 fails" in caplog.text
    assert "do not fit" in caplog.text
    no_rule_fails.clear()
