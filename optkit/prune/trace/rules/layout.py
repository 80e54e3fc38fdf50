"""Rules for operators that rearrange whole tensors: views, permutations, copies, concatenations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from optkit.core.compat import torch_trees as pytree
from optkit.prune.trace.labels import Axis
from optkit.prune.trace.values import Trace, Value


def freeze_all(trace: Trace, out: Any, held: Sequence[Value]) -> Any:
    """Freeze everything that reaches the operator; what it returns cannot be cut."""
    for value in held:
        for axis in value.axes:
            trace.space.freeze(axis)
    return pytree.tree_map(lambda s: blank(s.sizes, trace.space.operator) if hasattr(s, "sizes") else s, out)


def blank(shape: tuple[int, ...], whole_by: str) -> Value:
    """A tensor that cannot be cut, and why."""
    return Value(shape, [None] * len(shape), whole_by=[whole_by] * len(shape))


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
    """Dimensions in another order."""
    return Value(out.sizes, [x.axes[d] for d in dims], [x.zero[d] for d in dims])


def transpose(trace: Trace, out: Any, x: Value, a: int = 0, b: int = 1) -> Value:
    """Two dimensions exchanged."""
    order = list(range(len(x.shape)))
    if order:
        order[a], order[b] = order[b], order[a]
    return permute(trace, out, x, order)


def movedim(trace: Trace, out: Any, x: Value, source: int | Sequence[int], target: int | Sequence[int]) -> Value:
    """Dimensions in another order, as ``torch.movedim`` puts them."""
    taken, put = ([d] if isinstance(d, int) else list(d) for d in (source, target))
    marks = torch.movedim(torch.empty([k + 2 for k in range(len(x.shape))], device="meta"), taken, put)
    return permute(trace, out, x, [n - 2 for n in marks.shape])


def unsqueeze(trace: Trace, out: Any, x: Value, dim: int) -> Value:
    """A new dimension of size 1."""
    axes, zero = list(x.axes), list(x.zero)
    axes.insert(dim % len(out.sizes), None)
    zero.insert(dim % len(out.sizes), True)
    return Value(out.sizes, axes, zero)


def squeeze(trace: Trace, out: Any, x: Value, dim: int | Sequence[int] | None = None) -> Value:
    """Dimensions of size 1 dropped."""
    rank = len(x.shape)
    dims = range(rank) if dim is None else [dim] if isinstance(dim, int) else dim
    gone = {d % rank for d in dims if x.shape[d] == 1}
    return Value(out.sizes, *drop(x, gone))


def drop(x: Value, gone: set[int]) -> tuple[list[Axis], list[bool]]:
    """Labels and zero flags without some of the dimensions."""
    return [a for k, a in enumerate(x.axes) if k not in gone], [z for k, z in enumerate(x.zero) if k not in gone]


def expand(trace: Trace, out: Any, x: Value, *_: Any, implicit: bool = False) -> Value:
    """New and stretched dimensions cannot be cut; the others are as before."""
    extra = len(out.sizes) - len(x.shape)
    return written(trace, Value(out.sizes, [*[None] * extra, *x.axes], [*[True] * extra, *x.zero]))


def expand_as(trace: Trace, out: Any, x: Value, other: Value) -> Value:
    """As ``expand``, where the size may follow another tensor that is cut."""
    value = expand(trace, out, x)
    for k, axis in enumerate(value.axes):
        if axis is not None:
            trace.space.tie(axis, other.axes[k])
        elif other.axes[k] is not None and value.shape[k] == other.shape[k]:
            value.axes[k], value.zero[k] = other.axes[k], False
    return value


def repeat(trace: Trace, out: Any, x: Value, times: Sequence[int]) -> Value:
    """Copies side by side, cut together."""
    value = expand(trace, type(out)((*(1,) * (len(times) - len(x.shape)), *x.shape)), x)
    axes = [None if axis is None else np.tile(axis, n) for axis, n in zip(value.axes, times, strict=True)]
    return written(trace, Value(out.sizes, axes, value.zero))


def repeat_interleave(trace: Trace, out: Any, x: Value, times: Any, dim: int | None = None, **_: Any) -> Any:
    """Copies next to each other, cut together."""
    if dim is None or not isinstance(times, int):
        return freeze_all(trace, out, [x])
    axes, axis = list(x.axes), x.axes[dim]
    axes[dim] = None if axis is None else np.repeat(axis, times)
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
    """A concatenation along a new dimension."""
    d = dim % len(out.sizes)
    return cat(trace, out, [unsqueeze(trace, type(out)((*v.shape[:d], 1, *v.shape[d:])), v, d) for v in values], d)


def pixel_shuffle(trace: Trace, out: Any, x: Value, factor: int) -> Any:
    """(N, C r r, H, W) to (N, C, H r, W r): the r are fixed."""
    if x.axes[-1] is not None or x.axes[-2] is not None:
        return freeze_all(trace, out, [x])
    channels, a, b = trace.space.split(x.axes[-3], (x.shape[-3] // factor**2, factor, factor))
    trace.space.freeze(a, "")
    trace.space.freeze(b, "")
    return Value(out.sizes, [*x.axes[:-3], channels, None, None], list(x.zero))


RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_as", "reshape_as"), reshape),
    **dict.fromkeys(("transpose", "t", "swapaxes", "numpy_T"), transpose),
    **dict.fromkeys(("cat", "concat", "concatenate"), cat),
    **dict.fromkeys(("repeat", "tile"), repeat),
    "permute": permute,
    "movedim": movedim,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    "expand": expand,
    "expand_as": expand_as,
    "repeat_interleave": repeat_interleave,
    "stack": stack,
    "pixel_shuffle": pixel_shuffle,
}
