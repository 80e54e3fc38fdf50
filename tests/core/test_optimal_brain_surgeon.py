"""The sweep over a weight's columns, against the textbook's formulas."""

from __future__ import annotations

import pytest
import torch

from optkit.core.optimal_brain_surgeon import column_by_column, inverse_factor


def moments(groups: int, size: int) -> torch.Tensor:
    x = torch.randn(groups, 3 * size, size, dtype=torch.float64)
    return x.transpose(1, 2) @ x / (3 * size)


@pytest.mark.parametrize("size", [1, 7, 300, 700])
def test_the_factor_is_that_of_the_inverse(size):
    torch.manual_seed(0)
    moment, dead = moments(2, size), torch.zeros(2, size, dtype=torch.bool)
    found = inverse_factor(moment.float(), 0.01, dead)
    damped = moment.float().double()
    damped.diagonal(dim1=1, dim2=2).add_(0.01 * damped.diagonal(dim1=1, dim2=2).mean(1, keepdim=True))
    expected = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    torch.testing.assert_close(found, expected)
    assert not found.tril(-1).any()


def test_a_dead_input_counts_as_one():
    torch.manual_seed(0)
    moment = moments(1, 4)
    moment[:, 2] = moment[:, :, 2] = 0
    dead = torch.tensor([[False, False, True, False]])
    assert inverse_factor(moment, 0.0, dead)[0, 2, 2] == 1


@pytest.mark.parametrize("at_once", [1, 5, 128])
def test_the_columns_behind_make_up_for_each_error(at_once):
    """Optimal brain surgery, one column at a time: the rest moves by error times the inverse of what is left of it."""
    torch.manual_seed(0)
    weight, moment = torch.randn(2, 3, 12, dtype=torch.float64), moments(2, 12)
    expected = weight.clone()
    for group in range(2):
        for column in range(12):
            inverse = torch.linalg.inv(moment[group, column:, column:])
            error = expected[group, :, column] - expected[group, :, column].round()
            expected[group, :, column:] -= error[:, None] * inverse[0] / inverse[0, 0]
    factor = inverse_factor(moment, 0.0, torch.zeros(2, 12, dtype=torch.bool))
    found = weight.clone()
    seen = []

    def decide(columns, place, column):
        seen.append((len(columns[0]), place, column))
        return columns[:, place].round()

    column_by_column(found, factor, decide, at_once)
    torch.testing.assert_close(found, expected)
    assert [column for _, _, column in seen] == list(range(12))
    assert all(place == column % at_once for _, place, column in seen)
