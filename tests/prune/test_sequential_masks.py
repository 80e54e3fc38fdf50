"""Wanda and SparseGPT against brute force and closed forms."""

import pytest
import torch
from torch import nn

from optkit.core.errors import UserError
from optkit.models import language_model
from optkit.models.block_by_block import block_by_block, second_moments
from optkit.prune import Pattern, sequential_masks_
from optkit.prune.sequential_masks import sparsegpt

GEMMA = {
    "model_type": "gemma3_text", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "head_dim": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50, "max_position_embeddings": 64,
    "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}  # fmt: skip


@pytest.fixture
def model():
    torch.manual_seed(0)
    return language_model(config=GEMMA)


BATCHES = [(torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(n)),) for n in range(3)]


def test_blocks_get_what_the_model_gives_them_after_earlier_blocks_changed(model):
    for number, block in enumerate(block_by_block(model, BATCHES)):
        if number == 2:
            seen = [x.clone() for x in block.hidden]
        with torch.no_grad():
            block.module.mlp.down_proj.weight.mul_(0.5)
    taken = []
    model.model.model.layers[2].register_forward_pre_hook(lambda _, x, named: taken.append(x[0]), with_kwargs=True)
    with torch.no_grad():
        for batch in BATCHES:
            model(*batch)
    for a, b in zip(seen, taken, strict=True):
        torch.testing.assert_close(a, b)


def test_second_moments_are_those_of_all_rows_together():
    layer, x, y = nn.Linear(3, 2), torch.randn(4, 3), torch.randn(2, 5, 3)
    both = torch.cat([x, y.flatten(0, 1)])
    found = second_moments(lambda: (layer(x), layer(y)), {"layer": layer})["layer"]
    torch.testing.assert_close(found, both.T @ both / 14)
    found = second_moments(lambda: (layer(x), layer(y)), {"layer": layer}, diagonal=True)["layer"]
    torch.testing.assert_close(found, both.square().mean(0))


def test_wanda_removes_from_each_row_the_smallest_products_of_weight_and_input_norm(model):
    first = model.model.model.layers[0].mlp.down_proj
    weight, seen = first.weight.detach().clone(), []
    sequential_masks_(model, BATCHES, criterion="wanda", amount=0.5, protect=["*down_proj"])
    hook = first.register_forward_pre_hook(lambda _, x: seen.append(x[0].flatten(0, 1)))
    with torch.no_grad():
        for batch in BATCHES:
            model(*batch)
    hook.remove()
    norm = torch.cat(seen).norm(dim=0)
    masks = sequential_masks_(model, BATCHES, criterion="wanda", amount=0.25)
    for row, kept in zip(weight.abs() * norm, masks["model.model.layers.0.mlp.down_proj.weight"], strict=True):
        assert set((~kept).nonzero().flatten().tolist()) == set(row.argsort()[:12].tolist())


@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt"])
def test_a_pattern_holds_in_every_group(model, criterion):
    masks = sequential_masks_(model, BATCHES, criterion=criterion, pattern=Pattern.parse("2:4"))
    assert len(masks) == 3 * 7
    for name, kept in masks.items():
        weight = model.get_parameter(name)
        assert (weight.reshape(-1, 4) != 0).sum(1).max() <= 2
        assert (kept.reshape(-1, 4).sum(1) == 2).all()
        assert not weight[~kept].any()


def test_sparsegpt_is_the_least_squares_answer_where_one_weight_of_the_first_column_goes():
    """Of two inputs one weight goes: what makes up for it is known in closed form (optimal brain surgeon)."""
    torch.manual_seed(0)
    x = torch.randn(200, 2) @ torch.tensor([[1.0, 0.8], [0.0, 0.6]])
    moment, weight = x.T @ x / 200, torch.tensor([[0.1, 2.0]])
    changed, keep = sparsegpt(weight, moment, 0.5)
    assert keep.tolist() == [[False, True]]
    hessian = moment + 0.01 * moment.diagonal().mean() * torch.eye(2)
    torch.testing.assert_close(changed, torch.tensor([[0.0, 2.0 + 0.1 * float(hessian[0, 1] / hessian[1, 1])]]))


def test_sparsegpt_keeps_a_layers_output_nearer_than_zeroing_the_same_weights():
    torch.manual_seed(0)
    x = torch.randn(500, 20) @ torch.randn(20, 160) + torch.randn(500, 160)
    weight, moment = torch.randn(8, 160), x.T @ x / 500
    changed, keep = sparsegpt(weight, moment, 0.5)
    assert (~keep).sum() == round(0.5 * 128 * 8) + round(0.5 * 32 * 8)
    error = [float((x @ (w - weight).T).square().mean()) for w in (changed, weight * keep)]
    assert error[0] < 0.3 * error[1]


def test_inputs_that_are_always_zero_lose_their_weights():
    moment = torch.diag(torch.tensor([1.0, 0.0, 1.0, 1.0]))
    changed, _ = sparsegpt(torch.ones(2, 4), moment, 0.25)
    assert changed[:, 1].tolist() == [0.0, 0.0]


def test_bad_input_is_one_line(model):
    with pytest.raises(UserError, match="no residual blocks"):
        sequential_masks_(nn.Sequential(nn.Linear(4, 4)), [(torch.zeros(1, 4),)], amount=0.5)
    with pytest.raises(UserError, match="no batch"):
        sequential_masks_(model, [], amount=0.5)
    with pytest.raises(UserError, match="both are"):
        sequential_masks_(model, BATCHES, amount=0.5, pattern=Pattern.parse("2:4"))


class Named(nn.Module):
    """A residual block that answers with a mapping."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return {"extra": None, "hidden": x + self.linear(x)}


class OfNamed(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Named() for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)["hidden"]
        return x


def test_blocks_may_answer_with_a_mapping():
    torch.manual_seed(0)
    model = OfNamed().eval()
    masks = sequential_masks_(model, [(torch.randn(8, 4),), (torch.randn(8, 4),)], criterion="wanda", amount=0.5)
    assert [int(mask.sum()) for mask in masks.values()] == [8, 8, 8]
