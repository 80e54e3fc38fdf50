"""Rules for operators that pick parts of a tensor, or put it into a larger one: slices, indices, windows, padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from optkit.prune.trace.rules.layout import drop, freeze_all, written
from optkit.prune.trace.values import Trace, Value


def _parts(trace: Trace, x: Value, sizes: Sequence[int], dim: int) -> list[Value]:
    """Consecutive parts along ``dim``; parts of equal size must keep equally many, so they are tied."""
    axis, results = x.axes[dim], []
    if axis is not None and len(set(sizes)) == 1 and len(sizes) > 1:
        first, rest = trace.space.split(axis, (len(sizes), sizes[0]))
        trace.space.freeze(first, "")
        shared = [rest] * len(sizes)
    else:
        shared = [
            None if axis is None else axis[s : s + n] for s, n in zip(np.cumsum([0, *sizes]), sizes, strict=False)
        ]
    for size, labels in zip(sizes, shared, strict=True):
        axes, axis = list(x.axes), labels if size > 1 else trace.space.freeze(labels)
        axes[dim] = axis
        shape = list(x.shape)
        shape[dim] = size
        results.append(Value(tuple(shape), axes, list(x.zero)))
        if axis is not None:
            trace.sizes.append((trace.space.where, size, axis))
    return results


def split(trace: Trace, out: Any, x: Value, _sizes: Any, dim: int = 0) -> list[Value]:
    """Parts of the sizes that the graph shows."""
    return _parts(trace, x, [part.sizes[dim] for part in out], dim)


def unbind(trace: Trace, out: Any, x: Value, dim: int = 0) -> list[Value]:
    """Every slice is used by itself, so none of them can go."""
    trace.space.freeze(x.axes[dim], "")
    return [Value(part.sizes, *drop(x, {dim % len(x.shape)})) for part in out]


def select(trace: Trace, out: Any, x: Value, dim: int, index: Any) -> Value:
    """One slice by its number: the dimension stays whole."""
    trace.space.freeze(x.axes[dim], "")
    return Value(out.sizes, *drop(x, {dim % len(x.shape)}))


def slice_(
    trace: Trace, out: Any, x: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Value:
    """A slice of a dimension that can be cut: equal parts are tied, others just keep their labels."""
    dim %= len(x.shape)
    size, taken, axis = x.shape[dim], out.sizes[dim], x.axes[dim]
    if axis is None or taken == size:
        return Value(out.sizes, list(x.axes), list(x.zero))
    axes = list(x.axes)
    begin = 0 if start is None else max(start + size, 0) if start < 0 else start
    if step == 1 and taken and size % taken == 0 and begin % taken == 0:
        return _parts(trace, x, [taken] * (size // taken), dim)[begin // taken]
    if step != 1 and size % step == 0 and begin < step:
        rest, phase = trace.space.split(axis, (size // step, step))
        trace.space.freeze(phase, "")
        axes[dim] = rest
    else:
        kept = axis[begin : begin + taken * step : step] if taken > 1 else trace.space.freeze(axis)
        axes[dim] = kept
        if kept is not None:
            trace.sizes.append((trace.space.where, taken, kept))
            trace.sizes.append((trace.space.where, begin, axis[:begin]))
            trace.sizes.append((trace.space.where, begin + taken, axis[: begin + taken]))
    return Value(out.sizes, axes, list(x.zero))


def pad(trace: Trace, out: Any, x: Value, amounts: Sequence[int], *mode: Any) -> Value:
    """Constant padding of a dimension that can be cut holds new labels; both sides must keep equally many."""
    axes, zero, rank = list(x.axes), list(x.zero), len(x.shape)
    fill = mode[-1] if mode and isinstance(mode[-1], (int, float)) else 0
    kind = next((m for m in mode if isinstance(m, str)), "constant")
    for k, (low, high) in enumerate(zip(amounts[::2], amounts[1::2], strict=True)):
        d = rank - 1 - k
        axis = axes[d]
        if axis is None or not (low or high):
            continue
        if kind != "constant" or low < 0 or high < 0 or fill:
            axes[d] = trace.space.freeze(axis)
            continue
        before, after = trace.space.fresh(low), trace.space.fresh(high)
        if low == high:
            trace.space.tie(before, after)
        axes[d] = np.concatenate([before, axis, after])
        trace.pads.append((trace.space.where, np.concatenate([before, after])))
        trace.sizes += [(trace.space.where, low, before), (trace.space.where, high, after)]
    return Value(out.sizes, axes, zero)


def roll(trace: Trace, out: Any, x: Value, shifts: Any, dims: Any = ()) -> Any:
    """Rolled dimensions stay whole, because a shift counts slices."""
    dims = [dims] if isinstance(dims, int) else list(dims)
    if not dims:
        return freeze_all(trace, out, [x])
    axes = list(x.axes)
    for d in dims:
        axes[d] = trace.space.freeze(axes[d])
    return Value(out.sizes, axes, list(x.zero))


def flip(trace: Trace, out: Any, x: Value, dims: Sequence[int]) -> Value:
    """Labels are reversed with the elements."""
    axes = list(x.axes)
    for d in dims:
        axis = axes[d]
        axes[d] = None if axis is None else axis[::-1].copy()
    return Value(out.sizes, axes, list(x.zero))


def index(trace: Trace, out: Any, x: Value, indices: Sequence[Any]) -> Value:
    """Indexing by tensors: the indexed dimensions are frozen, the others keep their labels."""
    used = [k for k, i in enumerate(indices) if i is not None]
    for k in used:
        trace.space.freeze(x.axes[k])
    rest = [k for k in range(len(x.shape)) if k not in used]
    new = len(out.sizes) - len(rest)
    front = used[0] if used == list(range(used[0], used[-1] + 1)) else 0
    axes = [x.axes[k] for k in rest]
    zero = [x.zero[k] for k in rest]
    return Value(out.sizes, axes[:front] + [None] * new + axes[front:], zero[:front] + [True] * new + zero[front:])


def index_select(trace: Trace, out: Any, x: Value, dim: int, picked: Any) -> Value:
    """Indices count slices, so the dimension stays whole."""
    axes = list(x.axes)
    axes[dim] = trace.space.freeze(axes[dim])
    return Value(out.sizes, axes, list(x.zero))


def gather(trace: Trace, out: Any, x: Value, dim: int, picked: Value, **_: Any) -> Value:
    """Along the other dimensions the index, usually an expanded constant, takes the sizes of ``x``."""
    axes = [
        trace.space.freeze(a) if k == dim % len(x.shape) or x.shape[k] != picked.shape[k] else a
        for k, a in enumerate(x.axes)
    ]
    return written(trace, Value(out.sizes, axes, list(x.zero)))


def unfold(trace: Trace, out: Any, x: Value, dim: int, size: int, step: int) -> Value:
    """Windows over a dimension: it stays whole, and so does the new one."""
    axes = list(x.axes)
    axes[dim] = trace.space.freeze(axes[dim])
    return Value(out.sizes, [*axes, None], [*x.zero, True])


RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split"), split),
    **dict.fromkeys(("pad", "constant_pad_nd"), pad),
    "unbind": unbind,
    "select": select,
    "slice": slice_,
    "roll": roll,
    "flip": flip,
    "index": index,
    "index_select": index_select,
    "gather": gather,
    "unfold": unfold,
}
