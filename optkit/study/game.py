"""Attribution of a joint effect: Shapley values and interactions as weights of the measured subsets."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import cache
from itertools import combinations

Subset = frozenset[str]
Weights = dict[Subset, float]


def _in_order(players: Sequence[str], subsets: Collection[Subset]) -> list[Subset]:
    """The subsets, each once, smaller ones first: sums over them must not depend on a process's hashing."""
    return sorted(set(subsets), key=lambda subset: (len(subset), [p not in subset for p in players]))


def shapley_weights(players: Sequence[str], measured: Collection[Subset]) -> dict[str, Weights] | None:
    """For each player the weights of the subsets' values whose sum is its Shapley value (Shapley, 1953).

    A player's value is what it adds on joining, averaged over the orders in which all join. Where subsets are missing,
    the average is over the orders that meet measured subsets only (Faigle and Kern, 1992, for precedence); the values
    still sum to the joint effect. None where no such order is left.

    Args:
        players: the techniques.
        measured: the subsets that have a value, the empty and the full one among them.
    """
    everyone = frozenset(players)
    known = set(measured)

    @cache
    def ways(smaller: Subset, larger: Subset) -> int:
        """Orders in which the players between two subsets can join, one at a time, through measured subsets."""
        if smaller == larger:
            return 1
        return sum(ways(smaller | {p}, larger) for p in larger - smaller if smaller | {p} in known)

    nobody: Subset = frozenset()
    if nobody not in known or everyone not in known or not (total := ways(nobody, everyone)):
        return None
    found: dict[str, Weights] = {player: {} for player in players}
    for subset in _in_order(players, known):
        for player in (p for p in players if p not in subset):
            joined = subset | {player}
            share = ways(nobody, subset) * ways(joined, everyone) / total if joined in known else 0.0
            if share:
                found[player][joined] = found[player].get(joined, 0.0) + share
                found[player][subset] = found[player].get(subset, 0.0) - share
    return found


def num_orders(players: Sequence[str], measured: Collection[Subset]) -> int:
    """In how many orders the players can join through measured subsets, of ``len(players)!``."""
    reached: dict[Subset, int] = {frozenset(): 1}
    for size in range(1, len(players) + 1):
        for subset in (s for s in measured if len(s) == size):
            reached[subset] = sum(reached.get(subset - {p}, 0) for p in subset)
    return reached.get(frozenset(players), 0)


def interaction_weights(players: Sequence[str], measured: Collection[Subset]) -> dict[tuple[str, str], Weights]:
    """For each pair the weights whose sum is its interaction index (Grabisch and Roubens, 1999).

    The index is what two bring together beyond what each brings alone, averaged over what else is there. Contexts with
    a missing subset are left out; a pair without any context has no entry.
    """
    known, n = set(measured), len(players)
    found: dict[tuple[str, str], Weights] = {}
    for pair in combinations(players, 2):
        first, second = frozenset(pair[:1]), frozenset(pair[1:])
        contexts = {}
        for context in _in_order(players, known):
            together = [context, context | first, context | second, context | first | second]
            if not context & (first | second) and known.issuperset(together):
                size = len(context)
                contexts[context] = math.factorial(size) * math.factorial(n - size - 2) / math.factorial(n - 1)
        total = sum(contexts.values())
        weights: Weights = {}
        for context, weight in contexts.items():
            for subset, sign in (
                (context, 1),
                (context | first, -1),
                (context | second, -1),
                (context | first | second, 1),
            ):
                weights[subset] = weights.get(subset, 0.0) + sign * weight / total
        if weights:
            found[pair] = weights
    return found


def leave_one_out_weights(players: Sequence[str], measured: Collection[Subset]) -> dict[str, Weights]:
    """For each player the weights of "all, less all but this one"; those whose rest was not measured have no entry."""
    everyone, known = frozenset(players), set(measured)
    return {
        player: {everyone: 1.0, everyone - {player}: -1.0}
        for player in players
        if {everyone, everyone - {player}} <= known
    }
