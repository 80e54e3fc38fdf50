"""One option for each item within a budget: against all choices there are."""

from itertools import product

import numpy as np
import pytest

from optkit.core.knapsack import OverBudgetError, choose_options


def best_of_all(losses, costs, budget):
    """The least loss by trying every choice; None where none fits."""
    fitting = [
        sum(own[k] for own, k in zip(losses, places, strict=True))
        for places in product(*(range(len(own)) for own in losses))
        if sum(own[k] for own, k in zip(costs, places, strict=True)) <= budget * (1 + 1e-12)
    ]
    return min(fitting, default=None)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("seed", range(10))
def test_no_choice_loses_less(seed, scale):
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 4, 7)
    losses = [list(scale * random.normal(size=n)) for n in sizes]
    costs = [list(scale * random.exponential(size=n)) for n in sizes]
    low, high = (sum(bound(own) for own in costs) for bound in (min, max))
    for share in (0.0, 0.1, 0.4, 0.8, 1.0):
        budget = low + share * (high - low)
        found = choose_options(losses, costs, budget)
        assert found.loss == pytest.approx(best_of_all(losses, costs, budget), rel=1e-9)
        assert found.cost <= budget * (1 + 1e-9)
        assert found.loss == pytest.approx(sum(own[k] for own, k in zip(losses, found.options, strict=True)))
        assert found.cost == pytest.approx(sum(own[k] for own, k in zip(costs, found.options, strict=True)))


def test_it_is_better_than_taking_the_best_ratios_first():
    # the first item saves most loss for its cost, and leaves no room for the two that save more together
    losses, costs = [[7, 0], [5, 0], [5, 0]], [[0, 6], [0, 5], [0, 5]]
    found = choose_options(losses, costs, 10)
    assert (found.options, found.loss, found.cost) == ([0, 1, 1], 7, 10)


def test_loss_and_cost_exchanged_give_the_least_cost_within_a_loss():
    losses, costs = [[3, 1, 0], [4, 2, 0]], [[4, 8, 32], [4, 8, 32]]
    found = choose_options(costs, losses, 3)
    assert (found.options, found.loss, found.cost) == ([1, 1], 16, 3)


def test_a_budget_that_is_too_small_names_the_least_cost():
    with pytest.raises(OverBudgetError) as found:
        choose_options([[1, 0], [1, 0]], [[2, 3], [4, 5]], 5.9)
    assert found.value.least == 6


def test_the_least_cost_fits_exactly():
    assert choose_options([[1, 0], [1, 2]], [[0.1, 3], [0.2, 0.2]], 0.1 + 0.2).options == [0, 0]


def test_losses_whose_differences_are_tiny_are_told_apart():
    losses, costs = [[1e3, 0], [1.0, 1.0 - 1e-5]], [[0, 0], [0, 1]]
    assert choose_options(losses, costs, 1).options == [1, 1]
