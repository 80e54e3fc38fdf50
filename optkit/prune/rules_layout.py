"""Rules for operators that only move elements: views, permutations, slices, concatenations, padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from optkit.prune.graph import Trace, Value
from optkit.prune.labels import Axis


def freeze_all(trace: Trace, out: Any, held: Sequence[Value]) -> Any:
    """Freeze everything that reaches the operator; what it returns cannot be cut."""
    for value in held:
        for axis in value.axes:
            trace.space.freeze(axis)
    return pytree.tree_map(lambda s: _blank(s.sizes) if hasattr(s, "sizes") else s, out)


def _blank(shape: tuple[int, ...]) -> Value:
    return Value(shape, [None] * len(shape))


def written(trace: Trace, value: Value) -> Value:
    """Note that the sizes of ``value`` may be written out in the model's code."""
    for size, axis in zip(value.shape, value.axes, strict=True):
        if axis is not None:
            trace.sizes.append((trace.space.where, size, axis))
    return value


def reshape(trace: Trace, out: Any, x: Value, *_: Any) -> Value:
    """Views: groups of dimensions with equal products are merged and split."""
    axes: list[Axis] = []
    zero: list[bool] = []
    for old, new in _matching(x.shape, out.sizes):
        if len(old) == len(new) == 1:
            axes.append(x.axes[old[0]])
            zero.append(x.zero[old[0]])
            continue
        if any(x.axes[k] is not None for k in old):
            # a factor of a product is written out in the code too, e.g. the 12 of (12, 64)
            flat = trace.space.merge([x.axes[k] for k in old], [x.shape[k] for k in old])
            axes += trace.space.split(flat, [out.sizes[k] for k in new])
        else:
            axes += [None] * len(new)
        zero += [all(x.zero[k] for k in old if x.axes[k] is not None)] * len(new)
    return written(trace, Value(out.sizes, axes, zero))


def _matching(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    groups, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        if i >= len(old) or j >= len(new):
            groups.append((list(range(i, len(old))), list(range(j, len(new)))))  # sizes of 1 that are left over
            break
        mine, theirs = [i], [j]
        a, b = old[i], new[j]
        # a dimension of size 1 that meets none of its own kind stands alone
        if a == 1 and b != 1:
            groups.append(([i], []))
            i += 1
            continue
        if b == 1 and a != 1:
            groups.append(([], [j]))
            j += 1
            continue
        while a != b:
            if a < b:
                i += 1
                a *= old[i]
                mine.append(i)
            else:
                j += 1
                b *= new[j]
                theirs.append(j)
        groups.append((mine, theirs))
        i, j = i + 1, j + 1
    return groups


def permute(trace: Trace, out: Any, x: Value, dims: Sequence[int]) -> Value:
    return Value(out.sizes, [x.axes[d] for d in dims], [x.zero[d] for d in dims])


def transpose(trace: Trace, out: Any, x: Value, a: int = 0, b: int = 1) -> Value:
    order = list(range(len(x.shape)))
    if order:
        order[a], order[b] = order[b], order[a]
    return permute(trace, out, x, order)


def movedim(trace: Trace, out: Any, x: Value, source: int | Sequence[int], target: int | Sequence[int]) -> Value:
    marks = torch.movedim(torch.empty([k + 2 for k in range(len(x.shape))], device="meta"), source, target)
    return permute(trace, out, x, [n - 2 for n in marks.shape])


def unsqueeze(trace: Trace, out: Any, x: Value, dim: int) -> Value:
    axes, zero = list(x.axes), list(x.zero)
    axes.insert(dim % len(out.sizes), None)
    zero.insert(dim % len(out.sizes), True)
    return Value(out.sizes, axes, zero)


def squeeze(trace: Trace, out: Any, x: Value, dim: int | Sequence[int] | None = None) -> Value:
    rank = len(x.shape)
    dims = range(rank) if dim is None else [dim] if isinstance(dim, int) else dim
    gone = {d % rank for d in dims if x.shape[d] == 1}
    return Value(out.sizes, *(list(z) for z in _drop(x, gone)))


def _drop(x: Value, gone: set[int]) -> tuple[list[Axis], list[bool]]:
    return [a for k, a in enumerate(x.axes) if k not in gone], [z for k, z in enumerate(x.zero) if k not in gone]


def expand(trace: Trace, out: Any, x: Value, *_: Any, implicit: bool = False) -> Value:
    """New and stretched dimensions cannot be cut; the others are as before."""
    extra = len(out.sizes) - len(x.shape)
    return written(trace, Value(out.sizes, [None] * extra + x.axes, [True] * extra + x.zero))


def expand_as(trace: Trace, out: Any, x: Value, other: Value) -> Value:
    value = expand(trace, out, x)
    for k, axis in enumerate(value.axes):
        if axis is not None:
            trace.space.tie(axis, other.axes[k])
        elif other.axes[k] is not None and value.shape[k] == other.shape[k]:
            value.axes[k], value.zero[k] = other.axes[k], False
    return value


def repeat(trace: Trace, out: Any, x: Value, times: Sequence[int]) -> Value:
    value = expand(trace, type(out)((1,) * (len(times) - len(x.shape)) + x.shape), x)
    axes = [None if axis is None else np.tile(axis, n) for axis, n in zip(value.axes, times, strict=True)]
    return written(trace, Value(out.sizes, axes, value.zero))


def repeat_interleave(trace: Trace, out: Any, x: Value, times: Any, dim: int | None = None, **_: Any) -> Any:
    if dim is None or not isinstance(times, int):
        return freeze_all(trace, out, [x])
    axes = list(x.axes)
    axes[dim] = None if axes[dim] is None else np.repeat(axes[dim], times)
    return Value(out.sizes, axes, list(x.zero))


def cat(trace: Trace, out: Any, values: Sequence[Value], dim: int = 0) -> Value:
    """Labels are concatenated along ``dim`` (a part that cannot be cut gets frozen ones), tied along the others."""
    space = trace.space
    values = [v for v in values if v.shape != (0,)]
    axes, zero = [], []
    for k in range(len(out.sizes)):
        mine = [v.axes[k] for v in values]
        zero.append(all(v.zero[k] for v in values))
        if k != dim % len(out.sizes):
            axis = mine[0]
            for other in mine[1:]:
                axis = space.tie(axis, other)
            axes.append(axis)
        elif all(axis is None for axis in mine):
            axes.append(None)
        else:
            parts = [np.zeros(v.shape[k], np.int64) if a is None else a for a, v in zip(mine, values, strict=True)]
            axes.append(np.concatenate(parts))
    return Value(out.sizes, axes, zero)


def stack(trace: Trace, out: Any, values: Sequence[Value], dim: int = 0) -> Value:
    values = [
        unsqueeze(trace, type(out)(v.shape[: (d := dim % len(out.sizes))] + (1,) + v.shape[d:]), v, dim) for v in values
    ]
    return cat(trace, out, values, dim)


def _parts(trace: Trace, x: Value, sizes: Sequence[int], dim: int) -> list[Value]:
    """Consecutive parts along ``dim``; parts of equal size must keep equally many, so they are tied."""
    axis, results, start = x.axes[dim], [], 0
    if axis is not None and len(set(sizes)) == 1 and len(sizes) > 1:
        first, rest = trace.space.split(axis, (len(sizes), sizes[0]))
        trace.space.freeze(first, "")
        shared = [rest] * len(sizes)
    else:
        shared = [
            None if axis is None else axis[s : s + n] for s, n in zip(np.cumsum([0, *sizes]), sizes, strict=False)
        ]
    for size, labels in zip(sizes, shared, strict=True):
        axes = list(x.axes)
        axes[dim] = labels if size > 1 else trace.space.freeze(labels)
        shape = list(x.shape)
        shape[dim] = size
        results.append(Value(tuple(shape), axes, list(x.zero)))
        if axes[dim] is not None:
            trace.sizes.append((trace.space.where, size, axes[dim]))
        start += size
    return results


def split(trace: Trace, out: Any, x: Value, _sizes: Any, dim: int = 0) -> list[Value]:
    return _parts(trace, x, [part.sizes[dim] for part in out], dim)


def unbind(trace: Trace, out: Any, x: Value, dim: int = 0) -> list[Value]:
    trace.space.freeze(x.axes[dim], "")
    return [Value(part.sizes, *_drop(x, {dim % len(x.shape)})) for part in out]


def select(trace: Trace, out: Any, x: Value, dim: int, index: Any) -> Value:
    trace.space.freeze(x.axes[dim], "")
    return Value(out.sizes, *_drop(x, {dim % len(x.shape)}))


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
        shape = list(x.shape)
        return _parts(trace, x, [taken] * (size // taken), dim)[begin // taken]
    if step != 1 and size % step == 0 and begin < step:
        rest, phase = trace.space.split(axis, (size // step, step))
        trace.space.freeze(phase, "")
        axes[dim] = rest
    else:
        axes[dim] = axis[begin : begin + taken * step : step] if taken > 1 else trace.space.freeze(axis)
        if axes[dim] is not None:
            trace.sizes.append((trace.space.where, taken, axes[dim]))
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
        if axes[d] is None or not (low or high):
            continue
        if kind != "constant" or low < 0 or high < 0 or fill:
            axes[d] = trace.space.freeze(axes[d])
            continue
        before, after = trace.space.fresh(low), trace.space.fresh(high)
        if low == high:
            trace.space.tie(before, after)
        axes[d] = np.concatenate([before, axes[d], after])
        trace.pads.append((trace.space.where, np.concatenate([before, after])))
        trace.sizes += [(trace.space.where, low, before), (trace.space.where, high, after)]
    return Value(out.sizes, axes, zero)


def roll(trace: Trace, out: Any, x: Value, shifts: Any, dims: Any = ()) -> Any:
    dims = [dims] if isinstance(dims, int) else list(dims)
    if not dims:
        return freeze_all(trace, out, [x])
    axes = list(x.axes)
    for d in dims:
        axes[d] = trace.space.freeze(axes[d])
    return Value(out.sizes, axes, list(x.zero))


def flip(trace: Trace, out: Any, x: Value, dims: Sequence[int]) -> Value:
    axes = list(x.axes)
    for d in dims:
        axes[d] = None if axes[d] is None else axes[d][::-1].copy()
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
    axes = list(x.axes)
    axes[dim] = trace.space.freeze(axes[dim])
    return Value(out.sizes, axes, list(x.zero))


def gather(trace: Trace, out: Any, x: Value, dim: int, picked: Value, **_: Any) -> Value:
    """Along the other dimensions the index, usually an expanded constant, takes the sizes of ``x``."""
    axes = [trace.space.freeze(a) if k == dim % len(x.shape) or x.shape[k] != picked.shape[k] else a for k, a in enumerate(x.axes)]
    return written(trace, Value(out.sizes, axes, list(x.zero)))


def unfold(trace: Trace, out: Any, x: Value, dim: int, size: int, step: int) -> Value:
    axes = list(x.axes)
    axes[dim] = trace.space.freeze(axes[dim])
    return Value(out.sizes, [*axes, None], [*x.zero, True])


def pixel_shuffle(trace: Trace, out: Any, x: Value, factor: int) -> Any:
    """(N, C r r, H, W) to (N, C, H r, W r): the r are fixed."""
    if x.axes[-1] is not None or x.axes[-2] is not None:
        return freeze_all(trace, out, [x])
    channels, a, b = trace.space.split(x.axes[-3], (x.shape[-3] // factor**2, factor, factor))
    trace.space.freeze(a, "")
    trace.space.freeze(b, "")
    return Value(out.sizes, [*x.axes[:-3], channels, None, None], list(x.zero))


RULES = {
    **dict.fromkeys(["view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_as", "reshape_as"], reshape),
    **dict.fromkeys(["permute"], permute),
    **dict.fromkeys(["transpose", "t", "swapaxes", "numpy_T"], transpose),
    **dict.fromkeys(["split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split"], split),
    **dict.fromkeys(["pad", "constant_pad_nd"], pad),
    **dict.fromkeys(["cat", "concat", "concatenate"], cat),
    "movedim": movedim,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    "expand": expand,
    "expand_as": expand_as,
    "repeat": repeat,
    "tile": repeat,
    "repeat_interleave": repeat_interleave,
    "stack": stack,
    "unbind": unbind,
    "select": select,
    "slice": slice_,
    "roll": roll,
    "flip": flip,
    "index": index,
    "index_select": index_select,
    "gather": gather,
    "unfold": unfold,
    "pixel_shuffle": pixel_shuffle,
}
