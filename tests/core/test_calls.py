"""Example inputs, and few tokens of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from optkit.core.calls import TOKENS, few_tokens
from optkit.models.stacks import find_stacks


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return x + self.linear(x)


class Reader(nn.Module):
    """Reads texts; ``columns``: or a table of so many columns of category numbers, and no other."""

    def __init__(self, columns: int | None = None):
        super().__init__()
        self.columns = columns
        self.embedding, self.blocks = nn.Embedding(10, 4), nn.Sequential(Residual(), Residual())
        self.head = nn.Linear(4 * (columns or 1), 2)

    def forward(self, tokens):
        x = self.blocks(self.embedding(tokens))
        return self.head(x if self.columns is None else x.flatten(1))


def test_texts_are_cut_short():
    inputs = (torch.ones(2, TOKENS + 100, dtype=torch.long),)
    assert [tuple(x.shape) for x in few_tokens(Reader(), inputs)] == [(2, TOKENS)]
    named = few_tokens(Reader(), {"tokens": inputs[0]})
    assert tuple(named["tokens"].shape) == (2, TOKENS)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (Reader(TOKENS + 100), (torch.ones(2, TOKENS + 100, dtype=torch.long),)),  # takes no fewer
        (Reader(), (torch.ones(2, TOKENS, dtype=torch.long),)),
        (nn.Linear(TOKENS + 100, 2), (torch.ones(2, TOKENS + 100),)),
    ],
)
def test_other_inputs_stay(model, inputs):
    assert few_tokens(model, inputs) is inputs


def test_blocks_are_found_by_few_tokens_or_by_a_whole_table():
    tokens = torch.ones(2, TOKENS + 100, dtype=torch.long)
    for model in (Reader(), Reader(TOKENS + 100)):
        paths = [path for stack in find_stacks(model, (tokens,)) for path in stack.block_paths()]
        assert paths == ["blocks.0", "blocks.1"]
