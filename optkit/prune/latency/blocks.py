"""A graph in blocks that can be run alone, at any cut: each product of tensors with what follows it up to the next."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from optkit.core.compat import torch_trees as pytree
from optkit.core.compat.torch_operators import is_operator, schema
from optkit.prune.cut.units import Units
from optkit.prune.trace.rules.dispatch import operator_name
from optkit.prune.trace.values import Call, Trace, Value

_SIZED = ("view", "reshape", "_unsafe_view", "expand")  # the second argument is the shape of the result
ALIGNED = 8  # channels; kernels are written for multiples of it and slower between


@dataclass
class Block:
    """A product and the normalization, activation, pooling and so on behind it: what a compiling engine fuses.

    Attributes:
        calls: its operators, in order.
        inputs: the values that come from outside, parameters among them.
        outputs: the values that others read, or that nobody does.
        sides: the channels it takes in (summed over by the product), and all others: two lists of unit arrays.
    """

    calls: list[Call]
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    sides: tuple[Sequence[np.ndarray], Sequence[np.ndarray]] = ((), ())

    def values(self) -> list[Value]:
        """All values in it, each once, in order of appearance."""
        found = {id(v): v for v in self.inputs}
        for call in self.calls:
            found |= {id(v): v for v in leaves(call.result)}
        return list(found.values())

    def signature(self, units: Units, channels_last: bool) -> str:
        """JSON that is equal for blocks that take the same time whatever is cut: operators, shapes, what can be cut."""
        numbers = {id(v): n for n, v in enumerate(self.values())}
        axes: dict[bytes, int] = {}

        def describe(value: Value) -> list:
            cut = [_units(units, axis) for axis in value.axes]
            names = [None if u is None else axes.setdefault(u.tobytes(), len(axes)) for u in cut]
            return [list(value.shape), names, str(value.dtype), bool(value.param)]

        calls = []
        for call in self.calls:
            wiring = pytree.tree_map_only(Value, lambda v: f"%{numbers[id(v)]}", (call.args, call.kwargs))
            calls.append([str(call.target), [str(leaf) for leaf in pytree.tree_leaves(wiring)]])
        sizes = [[[u.size, np.unique(u).size] for u in side] for side in self.sides]
        parts = {"calls": calls, "values": [describe(v) for v in self.values()], "sides": sizes}
        return json.dumps(parts | {"channels_last": channels_last}, sort_keys=True)

    def kept(self, units: Units, removed: np.ndarray) -> tuple[float, float]:
        """Share of the channels that stays, on either side."""
        taken, given = self.sides
        return _share(taken, removed), _share(given, removed)

    def ladder(self, side: int, shares: Sequence[float], units: Units) -> list[np.ndarray]:
        """Cuts of one side (bool per unit) to about these shares of it, at multiples of 8 where it is wide."""
        cuts: dict[float, np.ndarray] = {}
        for share in shares:
            removed = np.zeros(units.count, bool)
            decided = np.zeros(units.count, bool)
            for array in self.sides[side]:
                new = np.unique(array[array >= 0])
                new = new[~decided[new]]
                width = max(1, array.size // max(1, np.unique(array).size))
                step = max(1, min(ALIGNED // math.gcd(ALIGNED, width), new.size // 4))
                keep = max(1, math.ceil(share * new.size))
                keep = min(new.size, -(-keep // step) * step)
                removed[new[keep:]] = True
                decided[new] = True
            cuts[_share(self.sides[side], removed)] = removed
        return [cuts[share] for share in sorted(cuts)]

    def build(
        self, units: Units, removed: np.ndarray, channels_last: bool
    ) -> tuple[torch.fx.GraphModule, tuple[torch.Tensor, ...]]:
        """The block with ``removed`` (bool per unit) cut, and inputs for it; weights and inputs are random."""
        root, graph = nn.Module(), torch.fx.Graph()
        nodes: dict[int, torch.fx.Node] = {}
        tensors = []
        for number, value in enumerate(self.inputs):
            tensor = _fill(_sizes(value, units, removed), value.dtype)
            if value.param:
                root.register_buffer(f"p{number}", tensor)
                nodes[id(value)] = graph.get_attr(f"p{number}")
            else:
                last = channels_last and tensor.ndim == 4
                tensors.append(tensor.contiguous(memory_format=torch.channels_last) if last else tensor)
                nodes[id(value)] = graph.placeholder(f"x{number}")
        for call in self.calls:
            args, kwargs = pytree.tree_map_only(
                Value, lambda v: nodes[id(v)], (_fit(call, units, removed), call.kwargs)
            )
            node = graph.call_function(call.target, args, kwargs)
            if isinstance(call.result, Value):
                nodes[id(call.result)] = node
            elif isinstance(call.result, (list, tuple)):
                parts = [(k, v) for k, v in enumerate(call.result) if isinstance(v, Value)]
                for k, value in reversed(parts):
                    nodes[id(value)] = graph.call_function(_item, (node, k))
        graph.output(tuple(nodes[id(v)] for v in self.outputs))
        return torch.fx.GraphModule(root, graph), tuple(tensors)

    def elements(self, units: Units, removed: np.ndarray) -> int:
        """How many numbers it reads and writes."""
        return sum(math.prod(_sizes(v, units, removed)) for v in (*self.inputs, *self.outputs))


def find_blocks(trace: Trace, units: Units) -> list[Block]:
    """The blocks of the evaluation graph; an operator goes with the last block that it reads from."""
    blocks = [Block([])]
    made: dict[int, int] = {}
    for call in trace.calls:
        read = leaves((call.args, call.kwargs))
        if call.multiplies:
            blocks.append(Block([]))
            number = len(blocks) - 1
        else:
            number = max((made.get(id(v), 0) for v in read), default=0)
        blocks[number].calls.append(call)
        made |= {id(v): number for v in leaves(call.result)}
    readers: dict[int, set[int]] = {}
    for number, block in enumerate(blocks):
        for call in block.calls:
            for value in leaves((call.args, call.kwargs)):
                readers.setdefault(id(value), set()).add(number)
    for number, block in enumerate(blocks):
        _connect(block, number, readers, units)
    return [block for block in blocks if block.calls]


def _connect(block: Block, number: int, readers: dict[int, set[int]], units: Units) -> None:
    inputs: dict[int, Value] = {}
    made: dict[int, Value] = {}
    for call in block.calls:
        inputs |= {id(v): v for v in leaves((call.args, call.kwargs)) if id(v) not in made}
        made |= {id(v): v for v in leaves(call.result)}
    block.inputs = list(inputs.values())
    block.outputs = [v for key, v in made.items() if readers.get(key, set()) != {number}]
    summed: dict[bytes, np.ndarray] = {}
    if block.calls and block.calls[0].multiplies:
        first = block.calls[0]
        stays = _arrays(leaves(first.result), units)
        summed = {k: u for k, u in _arrays(leaves((first.args, first.kwargs)), units).items() if k not in stays}
    others = {k: u for k, u in _arrays(block.values(), units).items() if k not in summed}
    block.sides = (list(summed.values()), list(others.values()))


def leaves(tree: Any) -> list[Value]:
    """The values in nested arguments or results."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Value)]


def _arrays(values: Iterable[Value], units: Units) -> dict[bytes, np.ndarray]:
    found = (_units(units, axis) for value in values for axis in value.axes)
    return {u.tobytes(): u for u in found if u is not None}


def _units(units: Units, axis: np.ndarray | None) -> np.ndarray | None:
    found = None if axis is None else units.of(axis)
    return found if found is not None and (found >= 0).any() else None


def _share(side: Sequence[np.ndarray], removed: np.ndarray) -> float:
    total = sum(u.size for u in side)
    gone = sum(int(removed[u[u >= 0]].sum()) for u in side)
    return 1 - gone / total if total else 1.0


def _sizes(value: Value, units: Units, removed: np.ndarray) -> list[int]:
    axes = zip(value.shape, value.axes, strict=True)
    return [size if axis is None else units.kept(axis, removed) for size, axis in axes]


def _fill(sizes: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Positive numbers, so that they may stand for variances; index 0 of every table."""
    if dtype.is_floating_point:
        return torch.rand(sizes, dtype=dtype)
    return torch.ones(sizes, dtype=dtype) if dtype == torch.bool else torch.zeros(sizes, dtype=dtype)


def _item(values: Sequence[torch.Tensor], index: int) -> torch.Tensor:
    return values[index]


def _fit(call: Call, units: Units, removed: np.ndarray) -> tuple:
    """The arguments, with the sizes among them as they are after the cut."""
    args = list(call.args)
    name = operator_name(call.target) if is_operator(call.target) else ""
    if name in _SIZED and isinstance(call.result, Value):
        args[1] = _sizes(call.result, units, removed)
    elif name in ("pad", "constant_pad_nd"):
        args[1] = _fit_pad(call, units, removed)
    elif "conv" in name:
        names = [argument.name for argument in schema(call.target).arguments]
        place = names.index("groups") if "groups" in names else len(args)
        if place < len(args) and args[place] > 1:
            x, weight = (_sizes(v, units, removed) for v in args[:2])
            if weight[1] == args[1].shape[1]:
                channel = len(x) - len(weight) + 1
                args[place] = args[place] * x[channel] // args[0].shape[channel]
    return tuple(args)


def _fit_pad(call: Call, units: Units, removed: np.ndarray) -> list[int]:
    pad = list(call.args[1])
    sizes = zip(_sizes(call.args[0], units, removed), _sizes(call.result, units, removed), strict=True)
    for dim, (before, after) in enumerate(reversed(list(sizes))):
        if 2 * dim < len(pad):
            pad[2 * dim] = min(pad[2 * dim], after - before)
            pad[2 * dim + 1] = after - before - pad[2 * dim]
    return pad
