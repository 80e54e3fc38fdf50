"""How much of the budget a set of cuts takes away, and which cuts to make so that the asked share goes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from optkit.core.errors import UserError
from optkit.prune.cut.units import Units
from optkit.prune.options import FLOOR
from optkit.prune.trace.values import Trace

CLOSE = 0.005  # share of the budget; a cut that misses by more is tuned, one step of one layer at a time
MAX_MOVES = 10
MISSED = (0.1, 0.03)  # a cut that is off by more than these shares of the amount and of the budget has missed it


class TooSmallError(UserError):
    """Less was asked for than the smallest cut takes."""


class Metered(Protocol):
    """What a cut costs; ``total`` is the cost of none."""

    total: float

    def __call__(self, removed: np.ndarray) -> float:
        """The cost with ``removed`` (bool per unit) cut."""
        ...


class Meter:
    """A sum of products of sizes as a function of what is cut; one evaluation is a few vector operations.

    Args:
        units: what can be cut.
        terms: for each summand a constant and the label arrays whose kept sizes multiply it.
    """

    def __init__(self, units: Units, terms: Sequence[tuple[int, Sequence[np.ndarray]]]):
        self.fixed = np.array([float(constant) for constant, _ in terms] or [0.0])
        axes = [(term, units.of(axis)) for term, (_, parts) in enumerate(terms) for axis in parts]
        self._term = np.array([term for term, _ in axes], np.int64)
        self._size = np.array([found.size for _, found in axes], np.float64)
        self._owner = np.repeat(np.arange(len(axes)), [found.size for _, found in axes])
        self._unit = np.concatenate([np.zeros(0, np.int64), *(found for _, found in axes)])
        held = self._unit >= 0
        self._owner, self._unit = self._owner[held], self._unit[held]
        self.total = self(np.zeros(units.count, bool))

    def __call__(self, removed: np.ndarray) -> float:
        """The cost with ``removed`` (bool per unit) cut."""
        gone = np.bincount(self._owner, removed[self._unit], minlength=self._size.size)
        return float(self._products(self._size - gone).sum())

    def each(self, count: int) -> np.ndarray:
        """What each of ``count`` units adds to the cost of none cut, to first order."""
        per_index = self._products(self._size)[self._term] / self._size
        return np.bincount(self._unit, per_index[self._owner], minlength=count)

    def _products(self, sizes: np.ndarray) -> np.ndarray:
        products = self.fixed.copy()
        np.multiply.at(products, self._term, sizes)
        return products


def params_meter(units: Units, trace: Trace, shapes: Mapping[str, tuple[int, ...]]) -> Meter:
    """Counts parameters; ``shapes`` are those of all parameters, each once."""
    terms = []
    for name, shape in shapes.items():
        axes = trace.params.get(name, [None] * len(shape))
        fixed = math.prod(n for n, axis in zip(shape, axes, strict=True) if axis is None)
        terms.append((fixed, [axis for axis in axes if axis is not None]))
    return Meter(units, terms)


def macs_meter(units: Units, trace: Trace) -> Meter:
    """Counts multiply-accumulates of convolutions and matrix products on the example inputs."""
    return Meter(units, [(fixed, axes) for _, fixed, axes in trace.macs])


class Selector:
    """Turns scores into a set of cuts of any size, with floors and multiples kept.

    Args:
        units: what can be cut.
        scores: importance of each unit, normalized within its group.
        scope: ``"global"`` removes the lowest scores wherever they are, ``"local"`` the same share of every group.
        round_to: kept sizes are multiples of this wherever the layer's size allows.
        seed: breaks ties.
        floor: share of each layer's units that always stays.
        floor_of: units by the group's name that the floor is a share of, where there were more before earlier cuts.
        uniform: groups of corresponding layers, whose names differ in numbers only, lose the same number of units.
    """

    def __init__(
        self,
        units: Units,
        scores: np.ndarray,
        scope: str,
        round_to: int,
        seed: int,
        floor: float = FLOOR,
        floor_of: Mapping[str, int] | None = None,
        uniform: bool = False,
    ):
        self.units, self.scope = units, scope
        self._sizes = np.bincount(units.group, minlength=len(units.names))
        self._step = np.array([round_to // math.gcd(round_to, int(w)) for w in units.width], np.int64)
        whole = [(floor_of or {}).get(name, size) for name, size in zip(units.names, self._sizes, strict=True)]
        self._floor = np.minimum(self._sizes, np.maximum(1, np.ceil(floor * np.array(whole)))).astype(np.int64)
        if round_to > 1:
            self._floor = np.minimum(self._sizes, -(-self._floor // self._step) * self._step)
        held = [slot.units[slot.units >= 0] for slot in units.slots]
        self._held, self._owner = np.concatenate(held), np.repeat(np.arange(len(held)), [found.size for found in held])
        self._spare = np.array([s.units.size - max(1, math.ceil(floor * s.units.size)) for s in units.slots], np.int64)
        jitter = np.random.default_rng(seed).random(units.count)
        self._scores = scores
        self._order = np.lexsort((jitter, scores))
        by_group = self._order[np.argsort(units.group[self._order], kind="stable")]
        starts = np.concatenate([[0], np.cumsum(self._sizes)[:-1]])
        self._rank = np.empty(units.count, np.int64)
        self._rank[by_group] = np.arange(units.count) - np.repeat(starts, self._sizes)
        self._family = _families(units, self._sizes) if uniform else np.arange(self._sizes.size)
        order = self._by_family() if uniform else self._order
        free = self._rank < (self._sizes - self._floor)[units.group]
        self._cuttable = order[free[order]]

    @property
    def most(self) -> int:
        """How many units can be cut at most."""
        return self._cuttable.size

    def cut(self, amount: int) -> np.ndarray:
        """Which units go (bool per unit), for ``amount`` between 0 (none) and :attr:`most` (all that may)."""
        if self.scope == "local":
            gone = np.minimum(
                np.floor(amount / max(self.most, 1) * self._sizes + 0.5).astype(np.int64), self._sizes - self._floor
            )
        else:
            gone = np.bincount(self.units.group[self._cuttable[:amount]], minlength=self._sizes.size)
            least = self._sizes.copy()
            np.minimum.at(least, self._family, gone)
            gone = least[self._family]
        kept = self._sizes - gone
        if (self._step > 1).any():
            rounded = np.maximum(np.round(kept / self._step).astype(np.int64) * self._step, self._floor)
            kept = np.where((gone == 0) | (rounded > self._sizes), self._sizes, rounded)
        return self._first(kept)

    def alone(self, group: int, share: float) -> np.ndarray:
        """The cut that takes the lowest share of one group, at least one unit of it if any may go, and nothing else."""
        size = self._sizes[group]
        gone = min(max(1, math.floor(share * size + 0.5)), size - self._floor[group])
        return self._first(np.where(np.arange(self._sizes.size) == group, size - gone, self._sizes))

    def neighbours(self, removed: np.ndarray) -> Iterator[np.ndarray]:
        """The cuts that keep one step more or less of one group."""
        kept = self._sizes - np.bincount(self.units.group, removed, minlength=self._sizes.size).astype(np.int64)
        for family in np.unique(self._family):
            group = np.flatnonzero(self._family == family)[0]
            size, step, floor = self._sizes[group], self._step[group], self._floor[group]
            for number in (kept[group] - step, kept[group] + step):
                if floor <= number <= size and number != kept[group]:
                    yield self._first(np.where(self._family == family, number, kept))

    def _by_family(self) -> np.ndarray:
        """The units by the mean score of those of the same rank in corresponding groups."""
        place = self._family[self.units.group] * (self._sizes.max(initial=0) + 1) + self._rank
        mean = np.bincount(place, self._scores) / np.maximum(np.bincount(place), 1)
        return np.lexsort((place, mean[place]))

    def _first(self, kept: np.ndarray) -> np.ndarray:
        return self._mend(self._rank < (self._sizes - kept)[self.units.group])

    def _mend(self, removed: np.ndarray) -> np.ndarray:
        """Give back the best units of a dimension that would lose nearly everything."""
        gone = np.bincount(self._owner, removed[self._held], minlength=len(self.units.slots))
        for number in np.flatnonzero(gone > self._spare):
            slot = self.units.slots[number]
            found = slot.units[slot.units >= 0]
            need = int(removed[found].sum()) - self._spare[number]
            if need > 0:
                lost = np.unique(found[removed[found]])
                best = lost[np.argsort(-self._scores[lost], kind="stable")]
                removed[best[:need]] = False
        return removed


def _families(units: Units, sizes: np.ndarray) -> np.ndarray:
    """For each group the first that corresponds to it: of as many units, as wide, under another number."""
    first: dict[tuple[str, int, int], int] = {}
    keys = zip(units.names, sizes.tolist(), units.width.tolist(), strict=True)
    return np.array([first.setdefault((re.sub(r"\d+", "#", n), s, w), g) for g, (n, s, w) in enumerate(keys)], np.int64)


def missed(asked: float, reached: float) -> bool:
    """Whether a cut takes clearly another share than was asked; of tiny amounts a single channel may be much."""
    of_amount, of_budget = MISSED
    return abs(reached - asked) > max(of_amount * asked, of_budget)


def select(
    selector: Selector, meter: Metered, amount: float, budget: str, whole: Callable[[], str] | None = None
) -> np.ndarray:
    """The cut whose cost is nearest to ``(1 - amount)`` of the whole.

    Args:
        selector: gives the cuts.
        meter: their cost.
        amount: share of the budget to remove.
        budget: its name.
        whole: says what keeps layers whole, for the message; called if it is needed.

    Raises:
        UserError: if even the largest cut leaves clearly more than that.
    """
    target = (1 - amount) * meter.total
    least = meter(selector.cut(selector.most))
    if least > target + 0.01 * meter.total:
        share = 1 - least / meter.total if meter.total else 0.0
        because = f", because of {whole()}" if whole else ""
        raise UserError(
            f"at most {share:.1%} of the {budget} can be cut from this model{because}",
            key="amount",
            value=amount,
            fix="ask for less, protect less, or lower round_to or floor",
        )
    return nearest(selector, meter, target)


def nearest(selector: Selector, meter: Metered, target: float) -> np.ndarray:
    """The cut that costs about ``target``: by scores as far as that goes, then one step of one layer at a time."""
    cost: Callable[[int], float] = lambda k: meter(selector.cut(k))  # noqa: E731
    low, high = 0, selector.most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) > target else (low, middle)
    best = min((selector.cut(high), selector.cut(low)), key=lambda cut: abs(meter(cut) - target))
    for _ in range(MAX_MOVES):
        if abs(meter(best) - target) < CLOSE * meter.total:
            break
        near = min(selector.neighbours(best), key=lambda cut: abs(meter(cut) - target), default=best)
        if abs(meter(near) - target) >= abs(meter(best) - target):
            break
        best = near
    return best
