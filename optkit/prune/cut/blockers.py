"""What stays whole in a model, and which operators in which modules are the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from optkit.prune.trace.labels import Resolved
from optkit.prune.trace.propagate import INPUT, OUTPUT
from optkit.prune.trace.values import Trace

MOST = 4  # reasons that are told of one dimension, and names in a message
COUPLED = "what it is coupled to stays whole"


@dataclass(frozen=True)
class Blocker:
    """One reason and what it keeps whole.

    Attributes:
        reason: an operator and the path of its module ("lstm in encoder"), ``model input``, ``model output``, ...
        dims: dimensions of parameters and buffers that it keeps whole, by their names.
        share: of all parameters, those in tensors that it keeps whole along at least one dimension.
    """

    reason: str
    dims: Mapping[str, Sequence[int]]
    share: float

    def __str__(self) -> str:
        names = list(self.dims)
        more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
        return f"{self.reason} ({', '.join(names[:MOST])}{more})"


class WholeTable(list[Blocker]):
    """The blockers of a model, those of most parameters first; prints as a table."""

    def __str__(self) -> str:
        rows = [("stays whole because of", "parameters", "dimensions")]
        for blocker in self:
            dims = [f"{name}[{','.join(map(str, dims))}]" for name, dims in blocker.dims.items()]
            rows.append((blocker.reason, f"{blocker.share:.1%}", ", ".join(dims)))
        first, second = (max(len(row[k]) for row in rows) for k in (0, 1))
        return "\n".join(f"{reason:<{first}}  {share:>{second}}  {dims}" for reason, share, dims in rows)

    def summary(self) -> str:
        """The first few in one line."""
        more = f"; and {len(self) - MOST} more" if len(self) > MOST else ""
        return "; ".join(map(str, self[:MOST])) + more


def blockers(trace: Trace, resolved: Resolved, sizes: Mapping[str, int]) -> WholeTable:
    """Everything that keeps dimensions whole.

    Args:
        trace: of the model.
        resolved: the classes of its labels.
        sizes: the number of elements of each parameter.
    """
    found: dict[str, dict[str, list[int]]] = {}
    for (name, dim), reasons in _reasons(trace, resolved).items():
        for reason in reasons:
            found.setdefault(reason, {}).setdefault(name, []).append(dim)
    total = max(sum(sizes.values()), 1)
    rows = [Blocker(r, dims, sum(sizes.get(n, 0) for n in dims) / total) for r, dims in found.items()]
    return WholeTable(sorted(rows, key=lambda row: (row.reason in (INPUT, OUTPUT), -row.share)))


def why_frozen(trace: Trace, resolved: Resolved) -> dict[str, list[str]]:
    """For each parameter dimension that stays whole, the reasons that reach it."""
    return {f"{name}[{dim}]": reasons for (name, dim), reasons in _reasons(trace, resolved).items()}


def _reasons(trace: Trace, resolved: Resolved) -> dict[tuple[str, int], list[str]]:
    sets: list[tuple[str, ...]] = [()]  # the different sets of reasons, and for each class the one that it has
    held = np.zeros(int(resolved.loose.max()) + 1, np.int64)
    unsaid = np.zeros(held.size, bool)  # kept whole without a word, such as the sizes of kernels
    for labels, reason in trace.space.frozen:
        classes = np.unique(resolved.loose[labels])
        unsaid[classes] |= not reason
        before = held[classes]
        for number in np.unique(before):
            if reason and reason not in sets[number]:
                held[classes[before == number]] = len(sets)
                sets.append((*sets[number], reason))
    _spread(trace, resolved, held, sets)
    report = {}
    for name, axes in trace.params.items():
        for dim, axis in enumerate(axes):
            if axis is not None and not resolved.classes[axis].any():
                classes = np.unique(resolved.loose[axis])
                found = dict.fromkeys(r for k in np.unique(held[classes]) for r in sets[k])
                if found or not unsaid[classes].all():
                    report[name, dim] = list(found)[:MOST] or [COUPLED]
    return report


def _spread(trace: Trace, resolved: Resolved, held: np.ndarray, sets: list[tuple[str, ...]]) -> None:
    """Give the reasons of one side of a view, such as a split into heads, to the other, if that has none."""
    for product in [*trace.space.products, *reversed(trace.space.products)]:
        labels = np.concatenate([product.grid.ravel(), *product.axes])
        classes = np.unique(resolved.loose[labels[resolved.classes[labels] == 0]])
        bare = classes[held[classes] == 0]
        found = dict.fromkeys(reason for k in np.unique(held[classes]) for reason in sets[k])
        if bare.size and found:
            held[bare] = len(sets)
            sets.append(tuple(found))
