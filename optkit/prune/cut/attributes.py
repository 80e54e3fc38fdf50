"""From a set of cuts to a plan: kept indices of every tensor, and the attributes that hold sizes."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from optkit.prune.cut.plan import CutPlan, to_ranges
from optkit.prune.cut.units import Units
from optkit.prune.trace.values import Debts, Trace

# Integers that are never a number of channels or heads.
_NOT_A_SIZE = re.compile(r"window|patch|kernel|stride|image|idx|dilation|vocab|position|eps|shift")
_COUNTS = re.compile(r"heads|groups|^num_|^n_")
Key = tuple[str, str, int]  # class, attribute, place in it (0 unless it is a tuple)


@dataclass
class Guesses:
    """Which of the sizes in a module's graph an attribute stands for, where its value matches several.

    Attributes:
        picked: for each attribute of each class the option taken, if not the likely one.
        options: for each class its attributes with a choice, and how many options each has.
    """

    picked: dict[Key, int] = field(default_factory=dict)
    options: dict[str, dict[Key, int]] = field(default_factory=lambda: defaultdict(dict))


def build_plan(model: nn.Module, trace: Trace, units: Units, removed: np.ndarray, guesses: Guesses) -> CutPlan:
    """The plan that cuts ``removed`` (bool per unit), without facts and reasons."""
    cuts: dict[str, dict[str, int]] = {}
    shapes: dict[str, list[int]] = {}
    sets: dict[bytes, int] = {}
    kept: list[str] = []
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    for slot in units.slots:
        gone = (slot.units >= 0) & removed[slot.units]
        if gone.any():
            key = gone.tobytes()
            if key not in sets:
                sets[key] = len(kept)
                kept.append(to_ranges(np.flatnonzero(~gone)))
            cuts.setdefault(slot.param, {})[str(slot.dim)] = sets[key]
            shapes[slot.param] = list(tensors[slot.param].shape)
    gone = np.bincount(units.group, removed, minlength=len(units.names)).astype(int)
    sizes = np.bincount(units.group, minlength=len(units.names))
    layers = [
        {"name": name, "units": int(n), "kept": int(n - g), "width": int(w)}
        for name, n, g, w in zip(units.names, sizes, gone, units.width, strict=True)
    ]
    attributes = all_attributes(model, trace, units, removed, guesses)
    scales = {name: [_factor(debts, units, removed, -1.0), offset] for name, (offset, debts) in trace.scales.items()}
    scales = {name: pair for name, pair in scales.items() if pair[0] != 1.0}
    norms = {name: [*pair] for name, pair in trace.norms.items() if pair[0] in cuts}
    spared: dict[str, list[int]] = defaultdict(list)
    for name, dim in sorted(trace.spared):
        if str(dim) in cuts.get(name, {}):
            spared[name].append(dim)
    return CutPlan(
        type(model).__name__, kept, cuts, shapes, attributes, scales, norms=norms, spared=dict(spared), layers=layers
    )


def all_attributes(model: nn.Module, trace: Trace, units: Units, removed: np.ndarray, guesses: Guesses) -> list[list]:
    """``[module, attribute, old, new]`` for every attribute that changes with the cut."""
    sizes = size_attributes(model, trace, units, removed, guesses)
    return sizes + epsilon_attributes(model, trace, units, removed)


def _factor(debts: Debts, units: Units, removed: np.ndarray, sign: float = 1.0) -> float:
    return math.prod((axis.size / units.kept(axis, removed)) ** (sign * power) for axis, power in debts)


def epsilon_attributes(model: nn.Module, trace: Trace, units: Units, removed: np.ndarray) -> list[list]:
    """``[module, attribute, old, new]`` for the epsilons of norms over dimensions that are cut.

    An epsilon written out in the code stays as it is; the trial cut decides whether that is exact enough.
    """
    found = {}
    for path, number, debts in trace.epsilons:
        factor = _factor(debts, units, removed)
        for name, value in vars(model.get_submodule(path)).items():
            if type(value) is float and value == number and factor != 1.0:
                found[path, name] = [path, name, value, value * factor]
        if number is None and factor != 1.0:
            found[path, "eps"] = [path, "eps", None, torch.finfo(torch.float32).eps * factor]
    return list(found.values())


def size_attributes(model: nn.Module, trace: Trace, units: Units, removed: np.ndarray, guesses: Guesses) -> list[list]:
    """``[module, attribute, old, new]`` for every attribute that must change.

    Attributes that a rule knows (``out_channels``) are set from the labels they count. In modules outside ``torch.nn``,
    an integer (or tuple of integers) is matched by value against the sizes written out in that module's part of the
    graph (``num_heads``, ``head_dim``, ``all_head_size``); ``guesses`` says which one where several match.
    """
    found: list[list] = []
    known: set[tuple[str, str]] = set()
    for path, name, axis in trace.attributes:
        module = model.get_submodule(path)
        held = getattr(module, name, None)
        if (path, name) not in known and held in (axis.size, (axis.size,)):
            known.add((path, name))
            new = units.kept(axis, removed)
            found.append([path, name, [held[0]], [new]] if isinstance(held, tuple) else [path, name, held, new])
    written: dict[str, dict[int, dict[bytes, np.ndarray]]] = defaultdict(lambda: defaultdict(dict))
    for path, size, axis in trace.sizes:
        written[path][size].setdefault(axis.tobytes(), axis)
    for path, sizes in written.items():
        module = model.get_submodule(path)
        if type(module).__module__.startswith("torch.nn."):
            continue
        for name, value in vars(module).items():
            numbers = list(value) if type(value) is tuple else [value]
            if (path, name) in known or _NOT_A_SIZE.search(name) or not all(type(n) is int for n in numbers):
                continue
            news = []
            for place, number in enumerate(numbers):
                axes = list(sizes.get(number, {}).values()) if number > 1 or type(value) is tuple else []
                news.append(_guess((type(module).__name__, name, place), number, axes, units, removed, guesses))
            found.append([path, name, numbers, news] if type(value) is tuple else [path, name, value, news[0]])
    return [entry for entry in found if entry[2] != entry[3]]


def _guess(key: Key, old: int, axes: list[np.ndarray], units: Units, removed: np.ndarray, guesses: Guesses) -> int:
    """The new value; options are the matching sizes in order, then leaving the attribute as it is."""
    news = [units.kept(axis, removed) for axis in axes]
    if len({old, *news}) > 1:
        guesses.options[key[0]][key] = len(news) + 1
    likely = 0 if _COUNTS.search(key[1]) else len(news) - 1
    picked = guesses.picked.get(key, likely)
    return news[picked] if 0 <= picked < len(news) else old
