"""Units (what is cut in one piece) and groups of units (what is ranked together), from a resolved walk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from optkit.prune.trace.labels import Axis, Resolved
from optkit.prune.trace.values import Trace


@dataclass
class Slot:
    """One dimension of one parameter or buffer: the unit that each index belongs to, -1 for never cut."""

    param: str
    dim: int
    units: np.ndarray


@dataclass
class Units:
    """Everything that can be cut.

    Attributes:
        count: how many units there are.
        slots: where they live, in the order of the model's parameters.
        of_label: for each label its unit, or -1.
        group: for each unit its group: the slot that holds it first, that is the layer that makes it.
        names: for each group the name of that layer's parameter.
        width: for each group how many indices of that slot one unit takes (the size of a head, say).
        coupled: for each unit in how many weights it lives (dimensions of tensors that have two or more).
    """

    count: int
    slots: list[Slot]
    of_label: np.ndarray
    group: np.ndarray
    names: list[str]
    width: np.ndarray
    coupled: np.ndarray

    def of(self, axis: Axis) -> np.ndarray:
        """The units of a label array."""
        return self.of_label[axis]

    def in_groups(self, groups: Sequence[int]) -> np.ndarray:
        """For each label whether it belongs to one of these groups."""
        return (self.of_label >= 0) & np.isin(self.group[self.of_label], groups)

    def kept(self, axis: np.ndarray, removed: np.ndarray) -> int:
        """How many indices of a dimension stay when ``removed`` (bool per unit) is cut."""
        units = self.of(axis)
        return int(axis.size - removed[units[units >= 0]].sum())


def find_units(trace: Trace, resolved: Resolved) -> Units:
    """Number the classes that some parameter holds, and group them by the slot that holds them first."""
    slots: list[tuple[str, int, np.ndarray]] = []
    for name, axes in trace.params.items():
        for dim, axis in enumerate(axes):
            if axis is not None and resolved.classes[axis].any():
                slots.append((name, dim, resolved.classes[axis]))
    held = np.unique(np.concatenate([np.zeros(1, np.int64), *(classes for *_, classes in slots)]))
    number = np.full(int(resolved.classes.max()) + 1, -1, np.int64)
    number[held[1:]] = np.arange(held.size - 1)
    count = held.size - 1
    found = [Slot(name, dim, number[classes]) for name, dim, classes in slots]
    group = np.full(count, -1, np.int64)
    names: list[str] = []
    width: list[int] = []
    coupled = np.zeros(count, np.int64)
    for slot in found:
        units, times = np.unique(slot.units[slot.units >= 0], return_counts=True)
        coupled[units] += len(trace.params[slot.param]) > 1
        new = group[units] < 0
        if new.any():
            group[units[new]] = len(names)
            names.append(slot.param)
            width.append(int(times[new].min()))
    return Units(count, found, number[resolved.classes], group, names, np.array(width, np.int64), coupled)
