"""Scores against closed forms, on a network small enough to do by hand."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from optkit.core.errors import UserError
from optkit.models import ResNetCIFAR
from optkit.prune import prune_structured
from optkit.prune.cut.analysis import Analysis, trace_model
from optkit.prune.cut.criteria import Importance, _weigh, normalize
from optkit.prune.cut.selection import Selector
from optkit.prune.cut.units import find_units
from optkit.prune.trace.values import Trace


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).double().eval()


@pytest.fixture
def batches():
    return [(torch.randn(5, 3).double(), torch.randn(5, 2).double()) for _ in range(3)]


def loss_fn(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def scores(net, criterion, batches=None):
    trace: Trace = trace_model(net, (torch.randn(2, 3).double(),))
    units = find_units(trace, trace.space.resolve())
    assert units.count == 4
    order = units.slots[0].units
    dims = {name: range(p.ndim) for name, p in net.named_parameters()}
    return Importance(criterion, dims, net, batches, loss_fn, 0).of(units)[order]


def test_norms(net):
    first, norm, _, last = net
    parts = [first.weight.T, first.bias[None], norm.weight[None], norm.bias[None], last.weight]
    together = torch.cat(parts).detach()
    np.testing.assert_allclose(scores(net, "l1"), together.abs().sum(0), rtol=1e-5)
    np.testing.assert_allclose(scores(net, "l2"), together.norm(dim=0), rtol=1e-5)


def test_norm_scale_and_geometric_median(net):
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([0.5, -2.0, 1.0, 0.1]))
    np.testing.assert_allclose(scores(net, "bn_scale"), [0.5, 2.0, 1.0, 0.1], rtol=1e-5)
    rows = [net[0].weight.detach(), net[3].weight.detach()]
    apart = [sum((rows[0][i] - rows[0][j]).norm().item() for j in range(4)) for i in range(4)]
    np.testing.assert_allclose(scores(net, "fpgm"), apart, rtol=1e-4)


def test_gradients(net, batches):
    taylor, fisher = np.zeros(4), np.zeros(4)
    first, norm, _, last = net
    for batch in batches:
        net.zero_grad()
        loss_fn(net, batch).backward()
        held = [first.weight.T, first.bias[None], norm.weight[None], norm.bias[None], last.weight]
        grads = [
            first.weight.grad.T,
            first.bias.grad[None],
            norm.weight.grad[None],
            norm.bias.grad[None],
            last.weight.grad,
        ]
        product = torch.cat([w * g for w, g in zip(held, grads, strict=True)]).detach()
        taylor += product.sum(0).square().numpy() / 3
        fisher += product.square().sum(0).numpy() / 3
    net.zero_grad(set_to_none=True)
    np.testing.assert_allclose(scores(net, "taylor", batches), taylor, rtol=1e-4)
    np.testing.assert_allclose(scores(net, "fisher", batches), fisher, rtol=1e-4)
    assert all(p.grad is None for p in net.parameters())


def test_activations(net, batches):
    x = torch.stack([batch[0] for batch in batches])
    hidden = net[2](net[1](net[0](x.flatten(0, 1)))).reshape(3, 5, 4)
    norms = [v.square().mean(1).mean(0).sqrt().detach() for v in (x, hidden)]
    expected = net[0].weight.abs() @ norms[0] + (net[3].weight.abs() * norms[1]).sum(0)
    np.testing.assert_allclose(scores(net, "activation", batches), expected.detach(), rtol=1e-4)


@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
@pytest.mark.parametrize("frozen", ["half", "all"])
def test_frozen_weights_are_scored_as_the_others(net, batches, criterion, frozen):
    expected = scores(net, criterion, batches)
    for p in net[0].parameters() if frozen == "half" else net.parameters():
        p.requires_grad_(False)
    before = [p.requires_grad for p in net.parameters()]
    np.testing.assert_allclose(scores(net, criterion, batches), expected)
    assert [p.requires_grad for p in net.parameters()] == before


def test_a_loss_without_gradient_is_a_clear_error(net, batches):
    with pytest.raises(UserError, match="no gradient flows from the loss"):
        Importance("taylor", {}, net, batches, lambda model, batch: loss_fn(model, batch).detach(), 0)


class Kernel(nn.Linear):
    """A linear layer that calls its weight otherwise."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.kernel = self.weight
        del self._parameters["weight"]

    def forward(self, x):
        return nn.functional.linear(x, self.kernel, self.bias)


def test_weights_that_no_activation_is_seen_of_are_scored_by_their_norm(batches):
    net = nn.Sequential(Kernel(3, 4), nn.ReLU(), Kernel(4, 2)).double().eval()
    np.testing.assert_allclose(scores(net, "activation", batches), scores(net, "l2"))


@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
def test_weights_that_the_loss_does_not_depend_on_are_scored_by_their_squares(net, batches, criterion):
    with torch.no_grad():
        net[1].weight.zero_()
        net[1].bias.fill_(-1)
    np.testing.assert_allclose(scores(net, criterion, batches), scores(net, "l2") ** 2)


def test_activations_weigh_the_input_axis_of_a_square_weight():
    norm = torch.arange(4.0)
    for module, over_inputs in ((nn.Linear(4, 4), norm), (Conv1D(4, 4), norm[:, None])):
        torch.testing.assert_close(_weigh(module, norm), module.weight.abs() * over_inputs)


def test_normalized_scores_fall_back_to_equal_shares(net):
    trace = trace_model(net, (torch.randn(2, 3).double(),))
    units = find_units(trace, trace.space.resolve())
    same = normalize(units, np.ones(4))
    np.testing.assert_allclose(np.sort(same), 2 * np.array([1, 4 / 3, 2, 4]))  # each lives in two weights
    peaked = normalize(units, np.array([1e-3, 1.0, 1.0, 1.0]))
    assert peaked[0] < 0.01 < peaked[1:].min()


def test_channels_that_many_weights_share_go_last():
    model = ResNetCIFAR(20).eval()
    plan = prune_structured(model, (torch.randn(2, 3, 32, 32),), amount=0.5, budget="macs").plan
    kept = {layer["name"]: layer["kept"] / layer["units"] for layer in plan.layers}
    inner = [share for name, share in kept.items() if name.endswith(".conv1.weight")]
    assert max(inner) < min(share for name, share in kept.items() if not name.endswith(".conv1.weight"))


def test_weights_that_are_used_often_go_first():
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.MaxPool2d(8), nn.Conv2d(16, 16, 3, padding=1), nn.Flatten()]
    model, images = nn.Sequential(*parts, nn.Linear(144, 10)).eval(), (torch.randn(2, 3, 28, 28),)

    def kept(budget):
        plan = prune_structured(model, images, amount=0.4, budget=budget).plan
        return {layer["name"]: layer["kept"] for layer in plan.layers}

    by_macs, by_params = kept("macs"), kept("params")
    assert by_macs["0.weight"] < by_macs["3.weight"]
    assert by_macs["0.weight"] < by_params["0.weight"]


def test_what_each_unit_costs_is_what_cutting_it_saves():
    analysis = Analysis(ResNetCIFAR(8).eval(), (torch.randn(2, 3, 32, 32),))
    for meter in analysis.meters.values():
        each = meter.each(analysis.units.count)
        for unit in range(0, analysis.units.count, 9):
            saved = meter.total - meter(np.arange(analysis.units.count) == unit)
            assert saved <= each[unit] * (1 + 1e-9)  # a channel met twice in one product saves less than twice
            assert each[unit] == pytest.approx(saved, rel=0.1)


def test_selector_keeps_floors_and_multiples(net):
    trace = trace_model(net, (torch.randn(2, 3).double(),))
    units = find_units(trace, trace.space.resolve())
    ranks = np.array([0.1, 0.4, 0.2, 0.3])
    one = Selector(units, ranks, "global", 1, 0)
    assert one.cut(one.most).tolist() == [True, False, True, True]
    two = Selector(units, ranks, "global", 2, 0)
    assert two.cut(two.most).tolist() == [True, False, True, False]
    assert not two.cut(0).any()


def test_activations_need_no_loss_and_are_seen_on_the_inputs_of_any_loader(net, batches):
    example = (batches[0][0],)

    def channels(data, **options):
        return prune_structured(net, example, amount=0.4, criterion="activation", batches=data, **options).plan.kept

    expected = channels(batches, loss_fn=loss_fn)
    assert channels(iter(batches), inputs=lambda batch: batch[0]) == expected
    assert channels([x for x, _ in batches]) == expected
    named = [{"x": x, "y": y} for x, y in batches]
    with pytest.raises(UserError, match=r"batch 1 is a dict of x, y, and no tensors .*lambda batch: \(batch\['x'\],\)"):
        channels(named)
    with pytest.raises(UserError, match="inputs: loss_fn gets each batch whole"):
        channels(named, loss_fn=loss_fn, inputs=lambda batch: batch["x"])
    with pytest.raises(UserError, match="criterion 'taylor' needs data .*batches and loss_fn"):
        prune_structured(net, example, amount=0.4, criterion="taylor", batches=batches, inputs=lambda b: b[0])
