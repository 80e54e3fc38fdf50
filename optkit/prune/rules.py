"""Which rule carries labels through which operator, and the rules for elementwise operators and reductions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from optkit.core.checks import is_number
from optkit.prune import rules_compute as compute
from optkit.prune import rules_layout as layout
from optkit.prune import rules_pick as pick
from optkit.prune import rules_scale as scale
from optkit.prune.graph import Shape, Trace, Value
from optkit.prune.labels import Axis
from optkit.prune.record import ERRORS

Rule = Callable[..., Any]

# f(0) = 0: a cut slice stays zero.
_KEEPS_ZERO = """
relu relu6 gelu silu mish tanh hardswish leaky_relu elu selu celu hardtanh clamp clamp_min clamp_max abs neg sqrt sign
erf sin dropout feature_dropout alpha_dropout to _to_copy type_as contiguous clone alias detach float lift_fresh_copy
hardshrink softshrink native_dropout round floor ceil trunc square pow rrelu expm1 log1p tan atan asinh sinh asin
nan_to_num positive
"""
KEEPS_ZERO = frozenset(_KEEPS_ZERO.split())
LINEAR = frozenset(("add", "sub", "rsub", "where", "maximum", "minimum", "lerp"))  # zero if all operands are
ELEMENTWISE = KEEPS_ZERO | LINEAR | {"mul", "div", "masked_fill", "copy"}


def apply_rule(trace: Trace, target: Any, shapes: Any, args: tuple, kwargs: dict) -> Any:
    """The labels of what an operator returns (tensors of these shapes), from those of its arguments."""
    held = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Value)]
    name = _name(target)
    if not any(v.labelled or v.debts for v in held):
        return pytree.tree_map_only(Shape, lambda s: Value(s.sizes, [None] * len(s.sizes)), shapes)
    debts = scale.settle(trace, name, args, held)
    try:
        result = _carried(trace, target, name, shapes, args, kwargs, held)
    except ERRORS:  # a form of the operator that its rule does not know
        result = None
    if not _fits(result, shapes):
        result = layout.freeze_all(trace, shapes, held)
    if debts:
        for value in pytree.tree_leaves(result):
            value.debts = scale.combine((value.debts, 1.0), (debts, 1.0))
    return result


def _carried(trace: Trace, target: Any, name: str, shapes: Any, args: tuple, kwargs: dict, held: list[Value]) -> Any:
    if name in _RULES:
        return _RULES[name](trace, shapes, *args, **kwargs)
    if name in ELEMENTWISE or torch.Tag.pointwise in getattr(target, "tags", ()):
        result = elementwise(trace, shapes, name, args, held)
        _keep_param(name, args, held[0], result)
        return result
    return None


def _fits(result: Any, shapes: Any) -> bool:
    """Whether these are values of the sizes that the operator returns, every axis with a label for each index."""
    values, found = pytree.tree_leaves(result), pytree.tree_leaves(shapes)
    return len(values) == len(found) and all(
        isinstance(value, Value)
        and value.shape == shape.sizes
        and [size if axis is None else axis.size for axis, size in zip(value.axes, value.shape, strict=False)]
        == list(shape.sizes)
        for value, shape in zip(values, found, strict=True)
        if isinstance(shape, Shape)
    )


def _keep_param(name: str, args: tuple, source: Value, result: Value) -> None:
    """A parameter in another type, or plus a number, can still make up for a factor."""
    if source.param and result.shape == source.shape:
        numbers = [a for a in args if isinstance(a, (int, float))]
        if name in ("to", "_to_copy", "float", "clone", "contiguous", "type_as", "alias"):
            result.param, result.offset = source.param, source.offset
        elif name == "add" and len(numbers) == 1:
            result.param, result.offset = source.param, source.offset + numbers[0]


def _name(target: Any) -> str:
    name = getattr(target, "_opname", None) or getattr(target, "__name__", str(target))
    return name.split(".")[0].rstrip("_") if not name.startswith("__") else name


def elementwise(trace: Trace, out: Any, name: str, args: tuple, held: list[Value]) -> Value:
    """Tie what meets elementwise, with broadcasting; work out where cut slices stay zero."""
    if name == "copy":
        broadcast(trace, held)
        return held[-1]
    value = broadcast(trace, held)
    numbers = [a for a in args if is_number(a)]
    parts = held[1:] if name == "where" else held
    for k in range(len(value.shape)):
        flags = [_zero_at(v, k - len(value.shape)) for v in parts]
        if name in KEEPS_ZERO:
            value.zero[k] = flags[0] and _fixes_zero(name, args)
        elif name == "mul":
            value.zero[k] = any(flags)
        elif name == "div":
            value.zero[k] = isinstance(args[0], Value) and flags[0]
        elif name == "masked_fill":
            value.zero[k] = flags[0] and args[2] == 0
        elif name in LINEAR:
            value.zero[k] = all(flags) and (len(parts) > 1 or not any(numbers))
        else:
            value.zero[k] = False
    return value


def _zero_at(value: Value, k: int) -> bool:
    return -k <= len(value.axes) and value.axes[k] is not None and value.zero[k]


def _fixes_zero(name: str, args: tuple) -> bool:
    if name in ("clamp", "clamp_min", "clamp_max", "hardtanh"):
        low, high = (None, args[1]) if name == "clamp_max" else (*args[1:3], None, None)[:2]
        return not any(isinstance(bound, Value) for bound in (low, high)) and (low or 0) <= 0 <= (high or 0)
    return name != "pow" or (isinstance(args[1], (int, float)) and args[1] > 0)


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


def _reduce(
    trace: Trace, out: Any, x: Value, dim: Any = None, keepdim: bool = False, *_: Any, exact: bool, **__: Any
) -> Any:
    dims = range(len(x.shape)) if dim is None or dim == [] else ([dim] if isinstance(dim, int) else dim)
    dims = {d % len(x.shape) for d in dims}
    for d in dims:
        if not (exact and x.zero[d]):
            trace.space.freeze(x.axes[d])
    axes = [None if d in dims else a for d, a in enumerate(x.axes) if keepdim or d not in dims]
    shape = tuple(1 if d in dims else n for d, n in enumerate(x.shape) if keepdim or d not in dims)
    value = Value(shape, axes, [z for d, z in enumerate(x.zero) if keepdim or d not in dims])
    return value if isinstance(out, Shape) else (value, value)


def reduce_sum(trace: Trace, out: Any, x: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """Sums may run over a cut dimension: what is cut adds zero."""
    return _reduce(trace, out, x, dim, keepdim, exact=True)


def reduce_other(trace: Trace, out: Any, x: Value, dim: Any = None, *rest: Any, **named: Any) -> Any:
    """Extrema, variances: exact over kept dimensions only."""
    if isinstance(dim, bool):
        dim = None  # var(x, unbiased)
    keepdim = named.get("keepdim", next((r for r in rest if isinstance(r, bool)), False))
    if rest and isinstance(rest[0], bool) and len(rest) > 1 and isinstance(rest[1], bool):
        keepdim = rest[1]  # var(x, dim, unbiased, keepdim)
    return _reduce(trace, out, x, dim, keepdim, exact=False)


def vector_norm(
    trace: Trace, out: Any, x: Value, order: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Any:
    """A norm of positive order: cut elements add zero."""
    return _reduce(trace, out, x, dim, keepdim, exact=isinstance(order, (int, float)) and order > 0)


def along(trace: Trace, out: Any, x: Value, dim: int, *_: Any, dtype: Any = None) -> Value:
    """Softmax, cumulative sums: every element along ``dim`` sees the others."""
    trace.space.freeze(x.axes[dim])
    axes = [None if k == dim % len(x.shape) else a for k, a in enumerate(x.axes)]
    return Value(x.shape, axes, [False] * len(axes))


_REDUCTIONS = "amax amin max min any all argmax argmin prod logsumexp var std"
_RULES: dict[str, Rule] = {
    **layout.RULES,
    **pick.RULES,
    **compute.RULES,
    "sum": reduce_sum,
    "linalg_vector_norm": vector_norm,
    "norm": vector_norm,
    "mean": scale.mean,
    "rms_norm": scale.rms_norm,
    **dict.fromkeys(_REDUCTIONS.split(), reduce_other),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax", "cumsum", "cumprod"), along),
}
