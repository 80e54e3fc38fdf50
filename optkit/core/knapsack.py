"""One option for each item, the sum of losses least under a budget on the sum of costs: solved exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from optkit.core.errors import StageError

SPREAD = 1e4  # of the losses as the solver sees them, which may be off by an absolute 1e-6
SLACK = 1e-9  # share of the budget by which rounding may exceed it


class OverBudgetError(Exception):
    """Nothing fits the budget.

    Attributes:
        least: the least sum of costs there is.
    """

    def __init__(self, least: float):
        self.least = least
        super().__init__(f"the least cost is {least}")


@dataclass(frozen=True)
class Chosen:
    """A choice for each item.

    Attributes:
        options: the place of the option of each item.
        loss, cost: sums over the items.
    """

    options: list[int]
    loss: float
    cost: float


def choose_options(losses: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], budget: float) -> Chosen:
    """The choice of one option for each item with the least sum of losses, its sum of costs within a budget.

    This is the multiple-choice knapsack problem (Sinha and Zoltners, 1979), as an integer program for HiGHS
    (`scipy.optimize.milp`). With losses and costs exchanged, it gives the least cost within a loss. Of choices with
    equal losses it gives any.

    Args:
        losses: of each item, one for each of its options; they may be negative.
        costs: of the same.
        budget: the largest sum of costs.

    Raises:
        OverBudgetError: even the cheapest options cost more.
        StageError: the solver gave up.
    """
    least = sum(min(own) for own in costs)
    if least > budget + SLACK * abs(budget):
        raise OverBudgetError(least)
    loss = np.concatenate([np.asarray(own, float) - min(own) for own in losses])
    cost = np.concatenate([np.asarray(own, float) - min(own) for own in costs])
    sizes = [len(own) for own in losses]
    room = max(budget - least, 0.0)
    chosen = _solved(loss, cost, sizes, room) if room > 0 else _cheapest(loss, cost, sizes)
    return Chosen(
        chosen,
        sum(own[option] for own, option in zip(losses, chosen, strict=True)),
        sum(own[option] for own, option in zip(costs, chosen, strict=True)),
    )


def _solved(loss: np.ndarray, cost: np.ndarray, sizes: Sequence[int], room: float) -> list[int]:
    """The options; losses and costs are 0 or more, and so is what may be spent."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, vstack

    item = np.repeat(np.arange(len(sizes)), sizes)
    one_each = csr_array((np.ones(item.size), (item, np.arange(item.size))), shape=(len(sizes), item.size))
    limit = 1.0
    while True:
        found = milp(
            loss * (SPREAD / (loss.max() or 1.0)),
            integrality=np.ones(item.size),
            bounds=Bounds(0, np.where(cost <= room * (1 + SLACK), 1, 0)),
            constraints=LinearConstraint(
                vstack([one_each, csr_array(cost[None] / room)]),
                np.append(np.ones(len(sizes)), -np.inf),
                np.append(np.ones(len(sizes)), limit),
            ),
            options={"mip_rel_gap": 0.0},
        )
        if not found.success:
            raise StageError(f"no choice of options was found: {found.message}")
        taken = np.flatnonzero(found.x > 0.5)
        over = cost[taken].sum() / room - 1
        if over <= SLACK:
            return [int(place) for place in taken - np.cumsum([0, *sizes[:-1]])]
        limit -= max(over, 1e-7)  # the solver may exceed a limit by 1e-6


def _cheapest(loss: np.ndarray, cost: np.ndarray, sizes: Sequence[int]) -> list[int]:
    """Of each item the options without a cost, of these the one that loses least."""
    ends = np.cumsum(sizes)
    return [
        int(np.lexsort((loss[end - size : end], cost[end - size : end]))[0])
        for end, size in zip(ends, sizes, strict=True)
    ]
