"""What an operator that works element by element does to zeros, found out by running it on a few numbers."""

from __future__ import annotations

from typing import Any

import torch

from optkit.core.compat import torch_trees as pytree
from optkit.prune.trace.labels import Axis
from optkit.prune.trace.values import Trace, Value

_NUMBERS = (-2.3, -1.0, -0.4, 0.3, 0.7, 1.1, 2.9, 5.0)
_SHIFT = 3  # operands that are not zero get these numbers in different orders


def is_pointwise(target: Any) -> bool:
    """Whether torch says that each element of the result depends on the elements at the same place only."""
    return torch.Tag.pointwise in getattr(target, "tags", ())


def elementwise(trace: Trace, target: Any, args: tuple, kwargs: dict[str, Any], held: list[Value]) -> Value:
    """Tie what meets elementwise, with broadcasting; work out where cut slices stay zero.

    An operand that must not be zero (a divisor, what a logarithm is taken of) is frozen if it depends on the model's
    inputs; of parameters it is noted that the slices to be cut stay as they are when the others are set to zero.
    """
    value = broadcast(trace, held)
    for k in range(-len(value.shape), 0):
        zeros = [zero_at(v, k) for v in held]
        value.zero[k] = False
        if any(zeros):
            value.zero[k], singular = _on_zeros(trace, target, args, kwargs, held, tuple(zeros))
            for number in singular:
                _spare(trace, held[number], k)
                if held[number].data:
                    value.axes[k] = None
    return value


def zero_at(value: Value, k: int) -> bool:
    """Whether what is cut along dimension ``k``, counted from the last (-1), is zero."""
    return -k <= len(value.axes) and value.axes[k] is not None and value.zero[k]


def broadcast(trace: Trace, held: list[Value]) -> Value:
    """The value that operands of these shapes broadcast to, their labels tied."""
    rank = max(len(v.shape) for v in held)
    shape, axes = [], []
    for k in range(rank):
        size, axis, seen = 1, None, False
        for v in held:
            position = k - rank + len(v.shape)
            if position < 0 or v.shape[position] == 1:
                continue
            mine: Axis = v.axes[position]
            size = v.shape[position]
            axis = trace.space.tie(axis, mine) if seen else mine
            seen = True
        shape.append(size)
        axes.append(axis)
    return Value(tuple(shape), axes)


def _spare(trace: Trace, value: Value, k: int) -> None:
    axis = value.axes[k]
    if axis is None:
        return
    if value.data:
        trace.space.freeze(axis, f"{trace.space.operator}, not finite at zero")
        return
    for name in value.sources:
        axes = trace.params[name]
        dims = [d for d, mine in enumerate(axes) if mine is not None and bool(set(mine.flat) & set(axis.flat))]
        trace.spared.update((name, d) for d in dims or range(len(axes)))


def _on_zeros(
    trace: Trace, target: Any, args: tuple, kwargs: dict[str, Any], held: list[Value], zeros: tuple[bool, ...]
) -> tuple[bool, tuple[int, ...]]:
    """Whether the result is zero where these operands are, and which of them must not be."""
    rest = pytree.tree_map_only(Value, lambda v: v.dtype, (args, kwargs))
    key = (target, repr(rest), zeros)
    if key not in trace.pointwise:
        trace.pointwise[key] = _find_out(target, (args, kwargs), [v.dtype for v in held], zeros)
    return trace.pointwise[key]


def _find_out(
    target: Any, arguments: Any, dtypes: list[torch.dtype], zeros: tuple[bool, ...]
) -> tuple[bool, tuple[int, ...]]:
    def run(zeros: tuple[bool, ...], positive: bool = False) -> torch.Tensor:
        made = (_operand(n, dtypes[n], zero, positive) for n, zero in enumerate(zeros))
        args, kwargs = pytree.tree_map_only(Value, lambda _: next(made), arguments)
        with torch.no_grad():
            return target(*args, **kwargs)

    def finite(zeros: tuple[bool, ...]) -> bool:
        return bool(run(zeros, positive=True).isfinite().all())

    singular = []
    if not finite(zeros):
        for number, zero in enumerate(zeros):
            others = tuple(z and n != number for n, z in enumerate(zeros))
            if zero and finite(others):
                singular, zeros = [number], others
                break
    found = run(zeros)
    known = found[found.isfinite()]  # elsewhere a number is outside the operator's domain
    return any(zeros) and bool(known.numel() and not known.count_nonzero()), tuple(singular)


def _operand(place: int, dtype: torch.dtype, zero: bool, positive: bool) -> torch.Tensor:
    numbers = torch.tensor(_NUMBERS).roll(_SHIFT * place)
    if zero:
        numbers = torch.zeros_like(numbers)
    elif positive:
        numbers = numbers.abs()
    if dtype == torch.bool:
        return numbers > 0
    if dtype.is_floating_point:
        return numbers.to(torch.promote_types(dtype, torch.float32))  # kernels for half precision are not everywhere
    return numbers.to(dtype) if dtype.is_complex else numbers.round().to(dtype)
