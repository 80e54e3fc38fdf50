"""What stays whole, and which operator in which module is the reason."""

import pytest
import torch
from torch import nn

from optkit.core.errors import UserError
from optkit.prune import kept_whole, prune_structured
from tests.prune import zoo

VECTOR = (torch.randn(4, 8, generator=torch.Generator().manual_seed(0)),)


def model():
    body = [nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 32), nn.Softmax(-1), nn.Linear(32, 4)]
    return nn.Sequential(*body).eval()


def test_the_table_lists_reasons_by_what_they_keep():
    table = kept_whole(model(), VECTOR)
    assert [blocker.reason for blocker in table] == ["layer_norm in 1", "softmax in 3", "model output", "model input"]
    softmax = table[1]
    assert softmax.dims == {"2.weight": [0], "2.bias": [0], "4.weight": [1]}
    total = 8 * 16 + 16 + 2 * 16 + 16 * 32 + 32 + 32 * 4 + 4
    assert softmax.share == pytest.approx((16 * 32 + 32 + 32 * 4) / total)
    lines = str(table).splitlines()
    assert lines[0].split() == ["stays", "whole", "because", "of", "parameters", "dimensions"]
    assert lines[2].startswith("softmax in 3")
    assert "2.weight[0], 2.bias[0], 4.weight[1]" in lines[2]


def test_the_table_is_made_where_nothing_can_be_cut_and_the_error_says_the_same():
    with pytest.raises(UserError) as caught:
        prune_structured(model(), VECTOR, amount=0.5)
    text = str(caught.value)
    assert (
        "nothing in this model can be cut, because of layer_norm in 1 (0.weight, 0.bias, 1.weight, 1.bias and 1 more)"
        in text
    )
    assert "softmax in 3 (2.weight, 2.bias, 4.weight)" in text
    assert "kept_whole" in text
    assert "\n" not in text


def test_a_share_out_of_reach_names_what_stands_in_the_way():
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 64), nn.Softmax(-1), nn.Linear(64, 4)).eval()
    with pytest.raises(UserError, match=r"at most .* because of softmax in 3 \(2.weight, 2.bias, 4.weight\)"):
        prune_structured(net, VECTOR, amount=0.9)


def test_protected_layers_are_in_the_table():
    table = kept_whole(zoo.mlp().eval(), VECTOR, protect=["2"])
    assert next(blocker for blocker in table if blocker.reason == "protect").dims.keys() >= {"2.weight", "2.bias"}


def test_dimensions_that_only_views_couple_have_a_reason():
    class Tiled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 4), nn.Linear(8, 8), nn.Linear(32, 4)

        def forward(self, x):
            outer = self.a(x)[:, :, None] * self.b(x)[:, None, :]
            return self.c(outer.flatten(1).softmax(-1))

    reasons = {reason for found in kept_whole(Tiled().eval(), VECTOR) for reason in [found.reason]}
    assert "softmax in the model" in reasons
    assert any(blocker.dims.keys() & {"a.weight", "b.weight"} for blocker in kept_whole(Tiled().eval(), VECTOR))
