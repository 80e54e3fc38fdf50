"""Compiled and data-parallel models."""

import pytest
import torch
from torch import nn

from optkit.core.errors import UserError
from optkit.prune import kept_whole, prune_depth, sensitivity
from optkit.prune.structured import prune_structured
from optkit.prune.trace.wrappers import unwrapped
from tests.prune import zoo

VECTOR = (torch.randn(4, 8, generator=torch.Generator().manual_seed(0)),)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: torch.compile(model, backend="eager"),
        nn.DataParallel,
        lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
    ],
)
def test_the_model_inside_is_cut(wrap):
    torch.manual_seed(0)
    model = zoo.randomize(zoo.mlp())
    pruned = prune_structured(wrap(model), VECTOR, amount=0.5)
    assert type(pruned.module) is nn.Sequential
    assert pruned.plan == prune_structured(model, VECTOR, amount=0.5).plan
    zoo.assert_exact(model, pruned, VECTOR)
    assert str(kept_whole(wrap(model), VECTOR)) == str(kept_whole(model, VECTOR))


def test_sensitivity_and_depth_of_a_compiled_model():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x):
            return x + self.down(self.up(x).relu())

    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(Block(), Block(), Block()), nn.Linear(8, 4)).eval()
    compiled = torch.compile(model, backend="eager")
    assert len(prune_depth(compiled, VECTOR, keep=1, by="position").module[1]) == 1
    table = sensitivity(compiled, VECTOR, lambda net: float(net(*VECTOR).square().mean()), shares=[0.5])
    assert table.model == "Sequential"


def test_a_compiled_module_inside_is_refused_by_name():
    model = nn.Sequential(nn.Linear(8, 16), torch.compile(nn.Linear(16, 16), backend="eager"), nn.Linear(16, 4))
    with pytest.raises(UserError, match="1 is compiled, so its operators cannot be seen"):
        prune_structured(model, VECTOR, amount=0.3)
    assert unwrapped(model[0]) is model[0]
