"""Factors that appear when a mean runs over a dimension that is cut, and where weights make up for them.

A mean over n slices of which k stay is n / k times too large once the others (all zero) are gone. The factor is carried
as a debt through operators that commute with it and paid by the next weight that multiplies the result; an epsilon
added on the way is scaled too. That makes RMS norms (Zhang and Sennrich, NeurIPS 2019) and global response norms (Woo
et al., CVPR 2023) exact under cuts. A debt that reaches any other operator freezes the dimension instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from optkit.prune.trace.rules.layout import freeze_all
from optkit.prune.trace.values import Debts, Trace, Value

# f(s x) = s f(x) for s > 0; the debt is that of the first operand.
_LINEAR = """
to _to_copy clone contiguous float type_as alias detach lift_fresh_copy neg abs relu leaky_relu dropout view reshape
permute transpose expand expand_as unsqueeze squeeze slice select sum mean linalg_vector_norm flatten
"""
_COMMUTES = frozenset(_LINEAR.split())
_POWERS = {"rsqrt": -0.5, "sqrt": 0.5, "reciprocal": -1.0, "square": 2.0}


def combine(*parts: tuple[Debts, float]) -> Debts:
    """The debts of a product of powers: pairs of debts and the exponent they are raised to."""
    total: dict[bytes, tuple[np.ndarray, float]] = {}
    for debts, exponent in parts:
        for axis, power in debts:
            before = total.get(axis.tobytes(), (axis, 0.0))[1]
            total[axis.tobytes()] = (axis, before + exponent * power)
    return tuple(pair for pair in total.values() if pair[1])


def settle(trace: Trace, name: str, args: Sequence[Any], held: Sequence[Value]) -> Debts:
    """The debts of an operator's result, given those of its operands; unpayable ones freeze their dimensions."""
    if not any(v.debts for v in held):
        return ()
    debts = _carried(trace, name, args, held)
    if debts is None:
        for value in held:
            forfeit(trace, value.debts)
        return ()
    return debts


def forfeit(trace: Trace, debts: Debts) -> None:
    """Freeze the dimensions of debts that cannot be paid."""
    for axis, _ in debts:
        trace.space.freeze(axis)


def _carried(trace: Trace, name: str, args: Sequence[Any], held: Sequence[Value]) -> Debts | None:
    if name in _COMMUTES:
        return held[0].debts if not any(v.debts for v in held[1:]) else None
    if name in _POWERS:
        return combine((held[0].debts, _POWERS[name]))
    numbers = [a for a in args if isinstance(a, (int, float))]
    if name == "pow":
        return combine((held[0].debts, float(numbers[0]))) if numbers else None
    if name == "add" and len(held) == 1:
        trace.epsilons.append((trace.space.where, float(numbers[0]), held[0].debts))
        return held[0].debts
    if name in ("add", "sub"):
        return held[0].debts if all(not combine((v.debts, 1.0), (held[0].debts, -1.0)) for v in held) else None
    if name == "div":
        if len(held) == 2:
            return combine((held[0].debts, 1.0), (held[1].debts, -1.0))
        return combine((held[0].debts, 1.0 if isinstance(args[0], Value) else -1.0))
    if name == "mul":
        total = combine(*((v.debts, 1.0) for v in held))
        payer = next((v for v in held if v.param and not v.debts), None)
        return () if payer is not None and pay(trace, payer, total) else total
    return None


def pay(trace: Trace, weight: Value, debts: Debts) -> bool:
    """Let a weight that is used nowhere else be scaled against the debts; False if it cannot."""
    if trace.uses.get(weight.param) != 1:
        return False
    trace.scales[weight.param] = (weight.offset, debts)
    return True


def rms_norm(
    trace: Trace, out: Any, x: Value, shape: Sequence[int], weight: Value | None = None, eps: float | None = None
) -> Value:
    """Root-mean-square norm over the last dimension: cut with its weight and epsilon scaled, frozen over several."""
    axes, axis = list(x.axes), x.axes[-1]
    debts: Debts = () if axis is None else ((axis, 1.0),)
    plain = len(shape) == 1 and x.zero[-1]
    if plain and weight is not None and pay(trace, weight, combine((debts, -0.5))) and axis is not None:
        axes[-1] = trace.space.tie(axis, weight.axes[0])
        trace.epsilons.append((trace.space.where, eps, debts))
        trace.attributes.append((trace.space.where, "normalized_shape", axis))
    else:
        for value in filter(None, (x, weight)):
            for k in range(len(shape)):
                trace.space.freeze(value.axes[-1 - k])
        axes[-len(shape) :] = [None] * len(shape)
    return Value(x.shape, axes, list(x.zero))


def weight_norm(trace: Trace, out: Any, v: Value, g: Value, dim: int = 0) -> Any:
    """g * v / |v|, the norm taken over all dimensions of v but one (Salimans and Kingma, NeurIPS 2016), or over all.

    Where columns of v go, its norms shrink; the plan scales g by as much, so that the columns that stay do not grow.
    What goes along ``dim`` is zero with g alone: a row of v must not be, as its norm divides it.
    """
    if not (v.param and g.param) or v.offset or g.offset or trace.norms.get(g.param, (v.param, dim)) != (v.param, dim):
        return freeze_all(trace, out, [v, g])
    trace.norms[g.param] = (v.param, dim)
    axes, zero = list(v.axes), list(v.zero)
    if dim >= 0:
        axes[dim], zero[dim] = trace.space.tie(axes[dim], g.axes[dim]), g.zero[dim]
        trace.spared.add((v.param, dim))
    return Value(out.sizes, axes, zero)


def mean(trace: Trace, out: Any, x: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
    """A mean over cut slices that are zero is off by a known factor; over others it freezes them."""
    rank = len(x.shape)
    dims = {d % rank for d in (range(rank) if dim is None else [dim] if isinstance(dim, int) else dim)}
    made = []
    for d in dims:
        axis = x.axes[d]
        if x.zero[d] and axis is not None:
            made.append((axis, 1.0))
        else:
            trace.space.freeze(axis)
    stays = [d for d in range(rank) if keepdim or d not in dims]
    shape = tuple(1 if d in dims else x.shape[d] for d in stays)
    axes = [None if d in dims else x.axes[d] for d in stays]
    return Value(shape, axes, [x.zero[d] for d in stays], debts=tuple(made))
