"""The labels that channels carry through a graph, and the constraints under which they may be cut.

Every dimension of every parameter gets one integer label per index. A label says "this slice of this tensor". Three
kinds of facts about labels are collected while the graph is walked: *ties* (two slices that meet elementwise or are
contracted with each other: cut both or neither), *frozen* labels (never cut), and *products* (a dimension that a view
splits into several: an element is cut if its slice along any of them is). :meth:`LabelSpace.resolve` turns them into
equivalence classes. Nothing here is ever the size of an activation: a tensor is described by one label array per
dimension, so the work is linear in the sum, not the product, of the sizes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

Axis = np.ndarray | None  # labels of one dimension, or None where nothing along it can be cut


@dataclass(eq=False)
class Product:
    """``grid[i, j, ...]`` is cut exactly if one of ``axes[0][i], axes[1][j], ...`` is."""

    grid: np.ndarray
    axes: list[np.ndarray]
    where: str

    def spread(self, axis: int) -> np.ndarray:
        """The labels of one axis, broadcast over the grid."""
        shape = [1] * self.grid.ndim
        shape[axis] = -1
        return np.broadcast_to(self.axes[axis].reshape(shape), self.grid.shape)


@dataclass
class Resolved:
    """The outcome of :meth:`LabelSpace.resolve`.

    Attributes:
        classes: for each label its equivalence class; class 0 is frozen.
        chosen: for each product the axis it is cut along, or -1 if it is frozen.
        loose: for each label the class it has when freezing is left out, for the report.
    """

    classes: np.ndarray
    chosen: list[int]
    loose: np.ndarray = field(repr=False)


class LabelSpace:
    """Labels and what is known about them; label 0 stands for "never cut".

    Attributes:
        where, operator: what is being walked: the path of a module, and the operator that it calls.
        whole_by: why dimensions without labels that reach the operator stay whole, or ``""``.
    """

    def __init__(self) -> None:
        self.size = 1
        self.where = ""
        self.operator = ""
        self.whole_by = ""
        self.products: list[Product] = []
        self.frozen: list[tuple[np.ndarray, str]] = []
        self._pairs: list[tuple[np.ndarray, np.ndarray]] = []
        self._avoid: list[np.ndarray] = []
        self._splits: dict[tuple[tuple[int, ...], bytes], list[np.ndarray]] = {}
        self._merges: dict[tuple[bytes, ...], np.ndarray] = {}

    def fresh(self, count: int) -> np.ndarray:
        """``count`` new labels."""
        labels = np.arange(self.size, self.size + count, dtype=np.int64)
        self.size += count
        return labels

    def tie(self, a: Axis, b: Axis) -> Axis:
        """Make two dimensions of equal size be cut together; returns the one that stands for both."""
        if a is None or b is None:
            for labels in (a, b):
                self.freeze(labels, self.whole_by or self.operator)
            return None
        if a.size != b.size:
            raise ValueError(f"{a.size} labels meet {b.size}")
        if a is not b:
            self._pairs.append((a, b))
        return a

    def freeze(self, labels: Axis, reason: str | None = None) -> Axis:
        """Never cut these labels; the operator being walked is the reason unless another is given.

        Returns:
            None, the labels of a dimension that stays whole.
        """
        if labels is not None and labels.size:
            self.frozen.append((labels.ravel(), self.operator if reason is None else reason))
        return None

    def avoid(self, labels: Axis) -> None:
        """Where a product leaves the choice, cut along another axis than this one."""
        if labels is not None:
            self._avoid.append(labels)

    def split(self, labels: Axis, sizes: Sequence[int]) -> list[Axis]:
        """The labels of the dimensions that a view splits one dimension into."""
        sizes = tuple(sizes)
        if labels is None:
            return [None] * len(sizes)
        grid = labels.reshape(sizes)
        varies = [k for k, n in enumerate(sizes) if n > 1 and (grid != grid.take([0], axis=k)).any()]
        grid = grid[tuple(slice(None) if k in varies else 0 for k in range(len(sizes)))]
        axes: list[Axis] = [None] * len(sizes)
        if not varies:
            self.freeze(labels)
        elif len(varies) == 1:
            axes[varies[0]] = grid
        else:
            for k, axis in zip(varies, self._factors(grid), strict=True):
                axes[k] = axis
        return axes

    def merge(self, axes: Sequence[Axis], sizes: Sequence[int]) -> Axis:
        """The labels of the dimension that a view merges several dimensions into."""
        held = {k: axis for k, axis in enumerate(axes) if axis is not None}
        if not held:
            return None
        grid = next(iter(held.values())) if len(held) == 1 else self._outer(list(held.values()))
        grid = grid.reshape([n if k in held else 1 for k, n in enumerate(sizes)])
        return np.ascontiguousarray(np.broadcast_to(grid, sizes)).ravel()

    def _factors(self, grid: np.ndarray) -> list[np.ndarray]:
        key = (grid.shape, grid.tobytes())
        if key not in self._splits:
            self._remember(Product(grid, [self.fresh(n) for n in grid.shape], self.where))
        return self._splits[key]

    def _outer(self, axes: list[np.ndarray]) -> np.ndarray:
        key = tuple(axis.tobytes() for axis in axes)
        if key not in self._merges:
            sizes = tuple(axis.size for axis in axes)
            self._remember(Product(self.fresh(int(np.prod(sizes))).reshape(sizes), axes, self.where))
        return self._merges[key]

    def _remember(self, product: Product) -> None:
        self.products.append(product)
        self._splits[product.grid.shape, product.grid.tobytes()] = product.axes
        self._merges[tuple(axis.tobytes() for axis in product.axes)] = product.grid

    def _components(self, pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        pairs = list(pairs)
        left = np.concatenate([np.zeros(0, np.int64), *(a.ravel() for a, _ in pairs)])
        right = np.concatenate([np.zeros(0, np.int64), *(b.ravel() for _, b in pairs)])
        links = coo_matrix((np.ones(left.size, np.int8), (left, right)), shape=(self.size, self.size))
        return connected_components(links, directed=False)[1]

    def resolve(self, also_frozen: Sequence[np.ndarray] = ()) -> Resolved:
        """Classes of labels that are cut together; every product is cut along one axis.

        A product with one axis left that can be cut is cut along it. Where several are left, an axis not to be avoided
        wins, then the one with most classes (finer cuts), then the first.
        """
        pairs = list(self._pairs)
        loose = self._components(pairs)
        pairs += [(labels, np.zeros_like(labels)) for labels, _ in self.frozen]
        pairs += [(labels.ravel(), np.zeros_like(labels.ravel())) for labels in also_frozen]
        avoided = np.unique(np.concatenate([np.zeros(0, np.int64), *self._avoid]))
        chosen = [-2] * len(self.products)
        while True:
            classes = self._components(pairs)
            news = self._forced(classes, chosen)
            if not news and -2 in chosen:
                news = self._choose(classes, chosen, np.isin(classes, classes[avoided]))
            if not news:
                return Resolved(classes, chosen, loose)
            pairs += news

    def _forced(self, classes: np.ndarray, chosen: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        news = []
        for number, product in enumerate(self.products):
            held = classes[product.grid] == 0
            alive = []
            for k, axis in enumerate(product.axes):
                others = tuple(j for j in range(held.ndim) if j != k)
                kept = classes[axis] == 0
                stuck = axis[held.any(axis=others) & ~kept]
                if stuck.size:
                    news.append((stuck, np.zeros_like(stuck)))
                if not (kept | held.any(axis=others)).all():
                    alive.append(k)
            if chosen[number] == -2 and len(alive) <= 1:
                chosen[number] = alive[0] if alive else -1
                partner = product.spread(alive[0]) if alive else np.zeros_like(product.grid)
                news.append((product.grid, partner))
        return news

    def _choose(
        self, classes: np.ndarray, chosen: list[int], avoided: np.ndarray
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        news = []
        for number, product in enumerate(self.products):
            if chosen[number] != -2:
                continue
            free = [np.unique(classes[axis][classes[axis] != 0]) for axis in product.axes]
            ranks = [
                (found.size > 0, not avoided[axis].any(), found.size)
                for found, axis in zip(free, product.axes, strict=True)
            ]
            best = max(range(len(ranks)), key=lambda k: (*ranks[k], -k))
            news += [(axis, np.zeros_like(axis)) for k, axis in enumerate(product.axes) if k != best]
        return news
