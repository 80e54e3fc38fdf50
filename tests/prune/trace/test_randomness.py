"""Models that draw random numbers in evaluation mode are cut elsewhere, and the operators are named."""

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from optkit.core.errors import UserError
from optkit.prune.structured import prune_structured
from optkit.prune.trace.randomness import draws
from tests.prune import zoo

VECTOR = (torch.randn(4, 8, generator=torch.Generator().manual_seed(0)),)


class MonteCarlo(nn.Module):
    """Dropout that stays on (Gal and Ghahramani, ICML 2016)."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.drop = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 4), Always()

    def forward(self, x):
        return self.c(self.drop(self.b(self.a(x).relu()).relu()))


class Always(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, training=True)


class Variational(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.mean, self.spread = nn.Linear(8, 32), nn.Linear(32, 16), nn.Linear(32, 16)
        self.d, self.out = nn.Linear(16, 32), nn.Linear(32, 8)

    def forward(self, x):
        x = self.a(x).relu()
        mean = self.mean(x)
        code = mean + torch.randn_like(mean) * (0.5 * self.spread(x)).exp()
        return self.out(self.d(code).relu())


@pytest.mark.parametrize(
    ("make", "operator", "whole", "cut"),
    [
        (MonteCarlo, "dropout in drop", ["b.weight[0]", "c.weight[1]"], ["a"]),
        (Variational, "randn_like in the model", ["mean.weight[0]", "spread.weight[0]", "d.weight[1]"], ["a", "d"]),
    ],
)
def test_what_random_numbers_are_drawn_for_stays_whole(make, operator, whole, cut, caplog):
    torch.manual_seed(0)
    model, before = zoo.randomize(make()), torch.random.get_rng_state()
    pruned = prune_structured(model, VECTOR, amount=0.3)
    assert f"two runs of {make.__name__} on the same inputs differ in evaluation mode: {operator}" in caplog.text
    for name in whole:
        assert pruned.plan.frozen[name] == [f"{operator}, which is random"]
    assert all(pruned.module.get_submodule(name).out_features < 32 for name in cut)
    torch.manual_seed(5)
    dense = zoo.zeroed(model, pruned.plan)(*VECTOR)
    torch.manual_seed(5)
    assert torch.allclose(pruned.module(*VECTOR), dense, atol=1e-5)
    torch.random.set_rng_state(before)


def test_pruning_leaves_the_random_numbers_of_the_program_alone():
    model = zoo.mlp().eval()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    prune_structured(model, VECTOR, amount=0.3)
    assert torch.equal(torch.rand(2), expected)


def test_random_numbers_of_the_output_are_named_where_nothing_can_be_cut():
    model = nn.Sequential(nn.Linear(8, 16), Always(), nn.Linear(16, 4)).eval()
    with pytest.raises(UserError, match="because of dropout in 1, which is random"):
        prune_structured(model, VECTOR, amount=0.3)


def test_random_numbers_that_are_not_of_torch():
    class Jitter(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = zoo.mlp()

        def forward(self, x):
            return self.net(x) * random.random()

    with pytest.raises(UserError, match="two runs of Jitter on the same inputs differ"):
        prune_structured(Jitter().eval(), VECTOR, amount=0.3)


def test_which_calls_draw():
    aten = torch.ops.aten
    assert draws(aten.dropout.default, (VECTOR[0], 0.5, True), {})
    assert not draws(aten.dropout.default, (VECTOR[0], 0.5, False), {})
    assert not draws(aten.dropout.default, (VECTOR[0], 0.0, True), {})
    assert not draws(aten.scaled_dot_product_attention.default, VECTOR * 3, {})
    assert draws(aten.scaled_dot_product_attention.default, VECTOR * 3, {"dropout_p": 0.1})
    assert draws(aten.bernoulli.default, VECTOR, {})
    assert not draws(aten.relu.default, VECTOR, {})
