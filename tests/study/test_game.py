import math
import os
import subprocess
import sys
from itertools import chain, combinations, permutations

import numpy as np
import pytest

from optkit.core.statistics import mean_over_seeds
from optkit.study.effects import LogCosts, cost_effect, quality_effect
from optkit.study.game import interaction_weights, leave_one_out_weights, num_orders, shapley_weights

PLAYERS = ("a", "b", "c", "d")


def _subsets(players=PLAYERS):
    return [frozenset(s) for s in chain.from_iterable(combinations(players, n) for n in range(len(players) + 1))]


@pytest.fixture
def game():
    random = np.random.default_rng(0)
    return {subset: float(random.normal()) for subset in _subsets()}


def _value(weights, game):
    return sum(w * game[s] for s, w in weights.items())


def _by_orders(game, orders):
    """What each player adds on joining, averaged over orders, by walking every one."""
    added = dict.fromkeys(PLAYERS, 0.0)
    for order in orders:
        for place, player in enumerate(order):
            added[player] += (game[frozenset(order[: place + 1])] - game[frozenset(order[:place])]) / len(orders)
    return added


def test_shapley_values_are_the_average_over_all_orders(game):
    found = {p: _value(w, game) for p, w in shapley_weights(PLAYERS, game).items()}
    assert found == pytest.approx(_by_orders(game, list(permutations(PLAYERS))))
    assert sum(found.values()) == pytest.approx(game[frozenset(PLAYERS)] - game[frozenset()])
    assert num_orders(PLAYERS, game) == math.factorial(4)


def test_with_subsets_missing_only_orders_that_avoid_them_count(game):
    del game[frozenset("bc")], game[frozenset("d")]
    allowed = [o for o in permutations(PLAYERS) if all(frozenset(o[:n]) in game for n in range(5))]
    assert 0 < len(allowed) < 24
    found = {p: _value(w, game) for p, w in shapley_weights(PLAYERS, game).items()}
    assert found == pytest.approx(_by_orders(game, allowed))
    assert sum(found.values()) == pytest.approx(game[frozenset(PLAYERS)] - game[frozenset()])
    assert num_orders(PLAYERS, game) == len(allowed)


def test_sums_do_not_depend_on_the_hashing_of_a_process():
    code = (
        "from itertools import combinations\n"
        "from optkit.study.game import interaction_weights, shapley_weights\n"
        "players = ['prune', 'recover', 'quantize', 'distill']\n"
        "subsets = {frozenset(s) for n in range(5) for s in combinations(players, n)}\n"
        "for weights in (shapley_weights(players, subsets), interaction_weights(players, subsets)):\n"
        "    print([(k, [(sorted(s), w) for s, w in found.items()]) for k, found in weights.items()])\n"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(3)
    }
    assert len(said) == 1


def test_without_any_order_left_there_is_no_value():
    assert shapley_weights("ab", [frozenset(), frozenset("ab")]) is None
    assert shapley_weights("ab", [frozenset("a"), frozenset("b"), frozenset("ab")]) is None


def test_interactions_are_what_two_bring_beyond_the_sum():
    # an additive game with a bonus of 3 for having both a and b
    game = {s: len(s) + 3.0 * (frozenset("ab") <= s) for s in _subsets()}
    found = {pair: _value(w, game) for pair, w in interaction_weights(PLAYERS, game).items()}
    assert found.pop(("a", "b")) == pytest.approx(3)
    assert list(found.values()) == pytest.approx([0] * 5)


def test_interactions_of_two_players_are_the_second_difference(game):
    pairs = {s: game[s] for s in _subsets("ab")}
    (weights,) = interaction_weights("ab", pairs).values()
    none, a, b, both = (pairs[frozenset(s)] for s in ("", "a", "b", "ab"))
    assert _value(weights, pairs) == pytest.approx(both - a - b + none)


def test_leaving_one_out_needs_the_rest_only(game):
    del game[frozenset("bcd")]
    found = leave_one_out_weights(PLAYERS, game)
    assert set(found) == set("bcd")
    assert _value(found["b"], game) == pytest.approx(game[frozenset(PLAYERS)] - game[frozenset("acd")])


def test_factors_of_a_cost_multiply_to_the_total():
    random = np.random.default_rng(1)
    costs = {s: LogCosts(random.normal(size=3), np.full(3, 0.01)) for s in _subsets()}
    found = [cost_effect(w, costs) for w in shapley_weights(PLAYERS, costs).values()]
    total = cost_effect({frozenset(PLAYERS): 1.0, frozenset(): -1.0}, costs)
    assert math.prod(f.value for f in found) == pytest.approx(total.value)
    assert all(f.low < f.value < f.high for f in found)


def test_a_counted_cost_of_one_seed_has_no_width():
    costs = {frozenset(): LogCosts(np.zeros(1), np.zeros(1)), frozenset("a"): LogCosts(np.log([0.5]), np.zeros(1))}
    assert cost_effect({frozenset("a"): 1.0, frozenset(): -1.0}, costs).ci == pytest.approx([0.5, 0.5])


def test_accuracies_are_paired_example_by_example():
    random = np.random.default_rng(2)
    base = random.random((2, 400)) < 0.8
    correct = {frozenset(): base, frozenset("a"): base.copy()}
    correct[frozenset("a")][:, :40] = True
    found = quality_effect({frozenset("a"): 1.0, frozenset(): -1.0}, correct)
    difference = correct[frozenset("a")].astype(float) - base
    assert found.value == pytest.approx(difference.mean())
    # with an example more each way, which counts as much as those that do
    counting = difference.mean(0)[difference.mean(0) != 0]
    more = np.sqrt((counting**2).mean()) * np.array([[1, -1]] * 2)
    expected = mean_over_seeds(np.column_stack((difference, more)))
    assert found.ci == pytest.approx(expected.ci)
