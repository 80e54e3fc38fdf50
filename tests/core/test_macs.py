import pytest
import torch
from torch import nn
from torch.nn import functional as F

from optkit.core.macs import count_macs


class Attention(nn.Module):
    def forward(self, x, mask=None):
        return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_two_products(masked):
    heads, length, width = 3, 7, 8
    x = torch.randn(2, heads, length, width)
    mask = (torch.ones(2, 1, length, length, dtype=torch.bool),) if masked else ()
    assert count_macs(Attention(), (x, *mask)) == 2 * 2 * heads * length * length * width


def test_layers_are_their_weights_times_the_places():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 25, 6))
    assert count_macs(model, (torch.randn(2, 3, 5, 5),)) == 2 * (3 * 4 * 9 * 25 + 100 * 6)


def test_layers_that_torch_fuses_in_evaluation_count_as_in_training():
    layer, x = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), torch.randn(2, 5, 16)
    assert count_macs(layer.eval(), (x,)) == count_macs(layer.train(), (x,))
