"""Which rule carries labels through which operator, and the rules for copies and reductions."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from optkit.core.calls import ERRORS
from optkit.core.compat import torch_trees as pytree
from optkit.core.compat.torch_operators import is_operator, schema
from optkit.core.errors import first_line
from optkit.prune.trace.rules import complex_numbers, compute, layout, recurrent, scale
from optkit.prune.trace.rules import indexing as pick
from optkit.prune.trace.rules.pointwise import broadcast, elementwise, is_pointwise
from optkit.prune.trace.values import Shape, Trace, Value

Rule = Callable[..., Any]
log = logging.getLogger(__name__)

_COPIES = """
to _to_copy type_as contiguous alias detach float lift_fresh_copy dropout feature_dropout alpha_dropout native_dropout
"""
COPIES = frozenset(_COPIES.split())  # the same elements, which torch does not call pointwise
_VIEWS = frozenset("view reshape unsqueeze squeeze expand permute transpose t flatten _unsafe_view".split())


@functools.cache
def has_rule(target: Any) -> bool:
    """Whether labels can be carried through an operator as it is, or it has to be taken apart if that can be done."""
    name = operator_name(target)
    operands = [a for a in schema(target).arguments if "Tensor" in str(a.type)] if is_operator(target) else []
    # of three operands, the result is a sum of products, through which more can be followed one by one
    return name in _RULES or name in COPIES or name == "copy" or (is_pointwise(target) and len(operands) < 3)


def apply_rule(trace: Trace, target: Any, shapes: Any, args: tuple, kwargs: dict) -> Any:
    """The labels of what an operator returns (tensors of these shapes), from those of its arguments.

    An operator without a rule freezes everything that reaches it, and so does one whose rule fails; the latter is an
    error in the rule, and logged as such.
    """
    held = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Value)]
    name = operator_name(target)
    if not any(v.labelled or v.debts for v in held):
        return pytree.tree_map_only(Shape, lambda s: Value(s.sizes, [None] * len(s.sizes)), shapes)
    debts = scale.settle(trace, name, args, held)
    result = _carried(trace, target, name, shapes, args, kwargs, held)
    if result is None:
        result = layout.freeze_all(trace, shapes, held)
    if debts:
        for value in pytree.tree_leaves(result):
            value.debts = scale.combine((value.debts, 1.0), (debts, 1.0))
    return result


def _carried(trace: Trace, target: Any, name: str, shapes: Any, args: tuple, kwargs: dict, held: list[Value]) -> Any:
    """What the operator's rule makes of it; None without one."""
    try:
        if name == "copy":
            broadcast(trace, held)
            return held[-1]
        if name in COPIES:
            result = _copy(shapes, held[0])
        elif is_pointwise(target):
            result = elementwise(trace, target, args, kwargs, held)
        elif name in _RULES:
            result = _RULES[name](trace, shapes, *args, **kwargs)
        else:
            return None
    except ERRORS as error:
        problem = f"{type(error).__name__}: {first_line(error)}"
    else:
        if _fits(result, shapes):
            _keep_param(name, args, held[0], result)
            return result
        problem = "its labels do not fit the result"
    log.error("the rule for %s fails, and what reaches it stays whole: %s", trace.space.operator, problem)
    return None


def _copy(out: Any, x: Value) -> Any:
    value = Value(x.shape, list(x.axes), list(x.zero))
    return value if isinstance(out, Shape) else [value] * len(out)


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


def _keep_param(name: str, args: tuple, source: Value, result: Any) -> None:
    """A parameter in another type or shape, plus or times a number, can still make up for a factor."""
    if not source.param or not isinstance(result, Value):
        return
    numbers = [a for a in args if isinstance(a, (int, float))]
    times = name in ("mul", "div") and args[0] is source and len(numbers) == 1
    if name in COPIES or name in _VIEWS or name == "clone" or times:
        result.param, result.offset = source.param, source.offset
    elif name == "add" and len(numbers) == 1 and result.shape == source.shape:
        result.param, result.offset = source.param, source.offset + numbers[0]


def operator_name(target: Any) -> str:
    """The name without namespace, overload and the underscore of operators that write in place."""
    name = getattr(target, "__name__", str(target)).split(".")[0]
    return name if name.startswith("__") else name.rstrip("_")


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
    **recurrent.RULES,
    **complex_numbers.RULES,
    "sum": reduce_sum,
    "linalg_vector_norm": vector_norm,
    "norm": vector_norm,
    "mean": scale.mean,
    "rms_norm": scale.rms_norm,
    "_weight_norm": scale.weight_norm,
    **dict.fromkeys(_REDUCTIONS.split(), reduce_other),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax", "cumsum", "cumprod"), along),
}
