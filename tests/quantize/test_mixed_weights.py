"""Weights of few bits within a loss of quality: which layers get more bits, and when nothing helps."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from optkit.core.errors import StageError, UserError
from optkit.models import MLP
from optkit.quantize import (
    WeightOnlyQuantization,
    allocate_weights,
    quantize_weight_only,
    quantize_weights_within,
    replay_weight_only,
)
from optkit.quantize.mixed_weights import predicted_costs, predicted_losses
from optkit.quantize.weights.grid import Grid
from optkit.quantize.weights.layers import PackedLinear
from optkit.quantize.weights.scheme import Scheme

FOUR, EIGHT = Scheme.of(4, 64, None), Scheme.of(8, None, None)


class Two(nn.Module):
    """Two layers of one shape, of which the second counts a hundred times as much."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)

    def forward(self, x):
        return 0.01 * self.first(x) + self.second(x)


@pytest.fixture
def model():
    return Two().eval()


X = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))


def distance(model):
    """To the float model's answers: the quality, smaller is better."""
    expected = Two()(X).detach()
    return lambda module: float(F.mse_loss(module(X).detach(), expected).sqrt())


def losses(module):
    target = torch.randn(32, 64, generator=torch.Generator().manual_seed(2))
    for x, y in zip(X.split(8), target.split(8), strict=True):
        yield F.mse_loss(module(x), y)


def within(model, max_drop, **options):
    return quantize_weights_within(
        model, max_drop=max_drop, evaluate=distance(model), losses=losses, higher_is_better=False, **options
    )


def test_costs_are_squared_gradients_times_squared_errors(model):
    found = predicted_costs(model, {"first": FOUR, "second": FOUR}, EIGHT, losses)
    for path, cost in found.items():
        weight = model.get_submodule(path).weight
        gradients = [torch.autograd.grad(loss, weight)[0] for loss in losses(model)]
        weight = weight.detach()
        narrow, wide = ((Grid.minmax(weight, scheme).nearest(weight) - weight) ** 2 for scheme in (FOUR, EIGHT))
        expected = sum(0.5 * (g**2 * (narrow - wide)).mean() for g in gradients)
        assert cost == pytest.approx(float(expected), rel=1e-5)
    assert found["second"] > 1000 * found["first"]
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_the_layer_that_counts_has_more_bits(model):
    four, both = (distance(model)(quantize_weight_only(model, bits=bits, group_size=64).module) for bits in (4, 8))
    found = within(model, max_drop=four / 5, bits=4, group_size=64)
    assert found.others == {"second": EIGHT}
    assert (found.module.first.bits, found.module.second.bits) == (4, 8)
    assert both < distance(model)(found.module) < four / 5
    again = replay_weight_only(
        Two(), found.layers, 4, 64, symmetric=False, others={path: vars(own) for path, own in found.others.items()}
    )
    again.load_state_dict(found.module.state_dict())
    assert torch.equal(again(X), found.module(X))


def test_nothing_has_more_bits_where_nothing_needs_them(model):
    four = distance(model)(quantize_weight_only(model, bits=4, group_size=64).module)
    assert within(model, max_drop=2 * four, bits=4, group_size=64).others == {}


def test_layers_of_8_bits_stay_in_float(model):
    eight = distance(model)(quantize_weight_only(model).module)
    found = within(model, max_drop=eight / 5)
    assert (found.layers, found.left) == (("first",), {"second": "protected"})


def test_a_loss_that_nothing_keeps_is_an_error(model):
    with pytest.raises(StageError, match="within 1e-09 of the float model's quality"):
        within(model, max_drop=1e-9, bits=4, group_size=64)


def bits(found):
    """Of each layer; 32 in float."""
    return {path: found.scheme_of(path).bits if path in found.layers else 32 for path in ("first", "second")}


def test_predicted_losses_are_those_of_the_second_order(model):
    found = predicted_losses(model, {"second": [FOUR, EIGHT, None]}, losses)["second"]
    narrow = predicted_costs(model, {"second": FOUR}, EIGHT, losses)["second"]
    assert found[2] == 0 < found[1] < found[0]
    assert (found[0] - found[1]) / 64**2 == pytest.approx(narrow, rel=1e-9)


@pytest.mark.parametrize(
    ("average", "expected"),
    [(4, (4, 4)), (5.9, (4, 4)), (6, (4, 8)), (8, (8, 8)), (18, (4, 32)), (20, (8, 32)), (32, (32, 32))],
)
def test_bits_are_given_to_the_layers_that_lose_most(model, average, expected):
    if average == 32:
        with pytest.raises(StageError, match="no layer of this Two fits"):
            allocate_weights(model, average_bits=32, losses=losses, bits=4, group_size=64)
        return
    found = allocate_weights(model, average_bits=average, losses=losses, bits=4, group_size=64)
    assert tuple(bits(found).values()) == expected


def test_bits_that_are_given_stay(model):
    found = allocate_weights(model, average_bits=6, losses=losses, bits=4, group_size=64, bits_of={"s*": 4})
    assert bits(found) == {"first": 8, "second": 4}
    found = allocate_weights(model, average_bits=20, losses=losses, bits=8, bits_of={"first": 8})
    assert bits(found) == {"first": 8, "second": 32}


def test_an_average_that_nothing_reaches_names_the_least(model):
    with pytest.raises(UserError, match="average_bits: the fewest that these options allow are 6.000 .ask for 6 or"):
        allocate_weights(model, average_bits=5, losses=losses, bits=4, group_size=64, bits_of={"first": 8})


def test_a_stage_keeps_an_average(context):
    torch.manual_seed(0)
    model = MLP([1, 8, 8], 10, [64, 64]).eval()
    sizes = {path: m.weight.numel() for path, m in model.named_modules() if isinstance(m, nn.Linear)}
    stage = WeightOnlyQuantization(bits=4, average_bits=6.5, sensitivity_examples=64)
    found = stage.apply(model, context())
    chosen = {path: m.bits for path, m in found.module.named_modules() if isinstance(m, PackedLinear)}
    assert set(chosen.values()) == {4, 8}
    average = sum(sizes[path] * count for path, count in chosen.items()) / sum(sizes[path] for path in chosen)
    assert 4 < average <= 6.5
    assert found.facts["other_bits"] == {path: 8 for path, count in chosen.items() if count == 8}


@pytest.mark.parametrize("fields", [{"average_bits": 0}, {"average_bits": 5, "max_drop": 0.1}])
def test_an_average_is_checked(fields):
    with pytest.raises(UserError, match="average_bits"):
        WeightOnlyQuantization(bits=4, **fields)


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_bits_by_pattern(model, rounding):
    batches = None if rounding == "nearest" else [(X,)]
    options = {"bits": 4, "group_size": 64, "rounding": rounding, "batches": batches}
    found = quantize_weight_only(model, bits_of={"*": 8, "f*": 3}, **options)
    assert {path: found.scheme_of(path).bits for path in found.layers} == {"first": 3, "second": 8}
    assert {path: found.module.get_submodule(path).bits for path in found.layers} == {"first": 3, "second": 8}
    alone = quantize_weight_only(model, **options | {"bits": 8, "group_size": None})
    assert torch.equal(found.module.second.integers(), alone.module.second.integers())


@pytest.mark.parametrize(("bits_of", "message"), [({"third": 8}, "third"), ({"first": 5}, "bits_of")])
def test_bits_of_no_layer_and_no_such_bits(model, bits_of, message):
    with pytest.raises(UserError, match=message):
        quantize_weight_only(model, bits=4, bits_of=bits_of)
