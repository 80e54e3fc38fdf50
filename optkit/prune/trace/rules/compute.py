"""Rules for operators that multiply, normalize, pool and look up."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from optkit.prune.trace.labels import Axis
from optkit.prune.trace.rules.layout import freeze_all
from optkit.prune.trace.values import Trace, Value


def contract(trace: Trace, a: Value, a_dims: str, b: Value, b_dims: str, out_dims: str) -> Value:
    """A product of two tensors summed over the letters that ``out_dims`` lacks (einsum notation).

    A letter both have is cut in both. A summed letter may be cut only if one side is zero there; where heads (letters
    all three have) can be cut, cutting them is preferred to cutting inside every head.
    """
    space = trace.space
    axes: dict[str, Axis] = {}
    sizes: dict[str, int] = {}
    zero: dict[str, bool] = {}
    for value, dims in ((a, a_dims), (b, b_dims)):
        for letter, axis, size, flag in zip(dims, value.axes, value.shape, value.zero, strict=True):
            if letter not in sizes or sizes[letter] == 1:
                axes[letter], sizes[letter], zero[letter] = axis, size, flag and axis is not None
            elif size != 1:
                axes[letter] = space.tie(axes[letter], axis)
                zero[letter] = zero[letter] or (flag and axis is not None)
    for letter in set(sizes) - set(out_dims):
        if not zero[letter]:
            space.freeze(axes[letter])
            axes[letter] = None
    shared = [letter for letter in out_dims if letter in a_dims and letter in b_dims and axes[letter] is not None]
    if shared:
        for letter in set(sizes) - set(shared):
            if letter not in out_dims and not b.param:
                space.freeze(axes[letter])  # a scale such as 1 / sqrt(head_dim) may be computed from this size
            space.avoid(axes[letter])
    note_macs(trace, [axes[k] for k in sizes], [sizes[k] for k in sizes])
    return Value(tuple(sizes[k] for k in out_dims), [axes[k] for k in out_dims], [zero[k] for k in out_dims])


def note_macs(trace: Trace, axes: Sequence[Axis], sizes: Sequence[int]) -> None:
    """Record that an operator does this product of sizes many multiply-accumulates."""
    fixed = math.prod(size for axis, size in zip(axes, sizes, strict=True) if axis is None)
    trace.macs.append((trace.space.where, fixed, [axis for axis in axes if axis is not None]))


def add_bias(trace: Trace, value: Value, bias: Value | None, dim: int) -> Value:
    """Tie a bias to one dimension; along the others a cut slice is no longer zero."""
    if bias is not None:
        value.axes[dim] = trace.space.tie(value.axes[dim], bias.axes[0]) if value.shape[dim] > 1 else None
        value.zero = [
            flag and bias.zero[0] if k == dim % len(value.shape) else False for k, flag in enumerate(value.zero)
        ]
    return value


def linear(trace: Trace, out: Any, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """(..., I) x (O, I) -> (..., O)."""
    batch = "abcdefgh"[: len(x.shape) - 1]
    value = contract(trace, x, batch + "i", weight, "oi", batch + "o")
    _attributes(trace, in_features=x.axes[-1], out_features=weight.axes[0])
    return add_bias(trace, value, bias, -1)


def _attributes(trace: Trace, **named: Axis) -> None:
    for name, axis in named.items():
        if axis is not None:
            trace.attributes.append((trace.space.where, name, axis))


def matmul(trace: Trace, out: Any, a: Value, b: Value) -> Any:
    """Batched products with broadcasting, and the vector cases."""
    if len(a.shape) == 1 or len(b.shape) == 1:
        if len(a.shape) == 1 and len(b.shape) == 1:
            return contract(trace, a, "i", b, "i", "")
        if len(a.shape) == 1:
            batch = "abcdefgh"[: len(b.shape) - 2]
            return contract(trace, a, "i", b, batch + "in", batch + "n")
        batch = "abcdefgh"[: len(a.shape) - 1]
        return contract(trace, a, batch + "i", b, "i", batch)
    rank = max(len(a.shape), len(b.shape)) - 2
    if rank:
        _attended(trace, a, b)
    batch = "abcdefgh"[:rank]
    mine, theirs = batch[rank + 2 - len(a.shape) :], batch[rank + 2 - len(b.shape) :]
    return contract(trace, a, mine + "mi", b, theirs + "in", batch + "mn")


def addmm(trace: Trace, out: Any, bias: Value, a: Value, b: Value, **_: Any) -> Value:
    """bias + a @ b, as in the Conv1D of GPT-2."""
    value = contract(trace, a, "mi", b, "in", "mn")
    if len(bias.shape) == 1:
        return add_bias(trace, value, bias, -1)
    return freeze_all(trace, out, [bias, value])


def vectors(trace: Trace, out: Any, a: Value, b: Value) -> Any:
    """Products with a vector; of constants alone they are one number for all channels, such as the spectral norm."""
    return matmul(trace, out, a, b) if a.data or b.data else freeze_all(trace, out, [a, b])


def bilinear(trace: Trace, out: Any, a: Value, b: Value, weight: Value, bias: Value | None = None) -> Value:
    """(..., I), (..., J) and weights (O, I, J) -> (..., O)."""
    batch = "abcdefgh"[: len(a.shape) - 1]
    inner = contract(trace, a, batch + "i", weight, "oij", batch + "oj")
    value = contract(trace, inner, batch + "oj", b, batch + "j", batch + "o")
    _attributes(trace, in1_features=a.axes[-1], in2_features=b.axes[-1], out_features=weight.axes[0])
    return add_bias(trace, value, bias, -1)


def einsum(trace: Trace, out: Any, equation: str, values: Sequence[Value], **_: Any) -> Any:
    """Two operands without ellipsis or repeated letters; others are frozen."""
    terms, _arrow, result = equation.replace(" ", "").partition("->")
    parts = terms.split(",")
    if len(parts) != 2 or "." in equation or not result or any(len(set(p)) < len(p) for p in parts):
        return freeze_all(trace, out, values)
    return contract(trace, values[0], parts[0], values[1], parts[1], result)


def conv(
    trace: Trace,
    out: Any,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    """Convolution with (O, I / groups, k...) weights; groups are cut whole, or the same channels in each."""
    space, spatial = trace.space, len(weight.shape) - 2
    _fix_spatial(trace, x, weight, spatial)
    taken, made = x.axes[-spatial - 1], weight.axes[0]
    if groups == 1:
        taken = space.tie(taken, weight.axes[1])
    else:
        outer, inner = space.split(taken, (groups, weight.shape[1]))
        space.tie(outer, space.split(made, (groups, weight.shape[0] // groups))[0])
        space.tie(inner, weight.axes[1])
        _attributes(trace, groups=outer)
    _count_conv(trace, out, weight, spatial)
    _attributes(trace, in_channels=taken, out_channels=made)
    return add_bias(trace, _convolved(x, out, made, spatial), bias, -spatial - 1)


def conv_transpose(
    trace: Trace,
    out: Any,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Value:
    """Transposed convolution with (I, O / groups, k...) weights."""
    space, spatial = trace.space, len(weight.shape) - 2
    _fix_spatial(trace, x, weight, spatial)
    taken = space.tie(x.axes[-spatial - 1], weight.axes[0])
    made = weight.axes[1]
    if groups > 1:
        outer, _ = space.split(taken, (groups, weight.shape[0] // groups))
        made = space.merge([outer, made], (groups, weight.shape[1]))
        _attributes(trace, groups=outer)
    _count_conv(trace, x, weight, spatial)
    _attributes(trace, in_channels=taken, out_channels=made)
    return add_bias(trace, _convolved(x, out, made, spatial), bias, -spatial - 1)


def _convolved(x: Value, out: Any, made: Axis, spatial: int) -> Value:
    axes = [*x.axes[: -spatial - 1], made if out.sizes[-spatial - 1] > 1 else None, *[None] * spatial]
    return Value(out.sizes, axes, [True] * len(axes))


def _fix_spatial(trace: Trace, x: Value, weight: Value, spatial: int) -> None:
    for value in (x, weight):
        for axis in value.axes[-spatial:]:
            trace.space.freeze(axis, "" if value is weight else None)


def _count_conv(trace: Trace, points: Any, weight: Value, spatial: int) -> None:
    """Each output (or, transposed, input) point times the elements of the weight."""
    sizes = points.shape if isinstance(points, Value) else points.sizes
    fixed = math.prod(sizes[-spatial:]) * math.prod(sizes[: -spatial - 1])
    note_macs(
        trace, [None, weight.axes[0], weight.axes[1], None], [fixed, *weight.shape[:2], math.prod(weight.shape[2:])]
    )


def deform_conv(
    trace: Trace, out: Any, x: Value, weight: Value, offset: Value, mask: Value, bias: Value | None, *sizes: Any
) -> Any:
    """A convolution that reads at offset places (torchvision); the offsets, and groups of channels, stay whole."""
    groups, offset_groups = sizes[6:8]
    if groups > 1 or offset_groups > 1:
        freeze_all(trace, out, [x, weight])
    freeze_all(trace, out, [Value(v.shape[1:], v.axes[1:]) for v in (offset, mask)])
    return conv(trace, out, x, weight, bias, groups=groups)


def grid_sample(trace: Trace, out: Any, x: Value, grid: Value, *_: Any) -> Value:
    """Values at places of the last dimensions."""
    freeze_all(trace, out, [Value(grid.shape[1:], grid.axes[1:])])
    spatial = len(x.shape) - 2
    for axis in x.axes[-spatial:]:
        trace.space.freeze(axis)
    axes = [trace.space.tie(x.axes[0], grid.axes[0]), x.axes[1], *[None] * spatial]
    return Value(out.sizes, axes, [x.zero[0], x.zero[1], *[False] * spatial])


def convolution(
    trace: Trace,
    out: Any,
    x: Value,
    weight: Value,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    *_: Any,
) -> Value:
    """The general form of the two above."""
    if transposed:
        return conv_transpose(trace, out, x, weight, bias, groups=groups)
    return conv(trace, out, x, weight, bias, groups=groups)


def attention(
    trace: Trace,
    out: Any,
    q: Value,
    k: Value,
    v: Value,
    attn_mask: Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    """scaled_dot_product_attention: (..., H, L, E), (..., H, S, E), (..., H, S, V) -> (..., H, L, V)."""
    space, rank = trace.space, len(q.shape)
    if scale is None:
        space.freeze(q.axes[-1])  # the scale is taken from the size, so cutting it is not exact
        space.freeze(k.axes[-1])
    if enable_gqa and k.shape[-3] != q.shape[-3]:
        k, v = (_repeat_heads(t, q.shape[-3]) for t in (k, v))
    _attended(trace, q, k, v)
    batch = "abcdefgh"[: rank - 2]
    scores = contract(trace, q, batch + "mi", k, batch + "ni", batch + "mn")
    if attn_mask is not None:
        for d in range(len(attn_mask.shape)):
            if attn_mask.shape[-1 - d] > 1:
                scores.axes[-1 - d] = space.tie(scores.axes[-1 - d], attn_mask.axes[-1 - d])
    space.freeze(scores.axes[-1])
    scores.axes[-1] = None
    scores.zero = [False] * rank
    return contract(trace, scores, batch + "mn", v, batch + "no", batch + "mo")


def _attended(trace: Trace, *values: Value) -> None:
    trace.attended += [axis for value in values for axis in value.axes if axis is not None]


def _repeat_heads(value: Value, heads: int) -> Value:
    shape, axes = list(value.shape), list(value.axes)
    axes[-3] = None if axes[-3] is None else np.repeat(axes[-3], heads // shape[-3])
    shape[-3] = heads
    return Value(tuple(shape), axes, list(value.zero))


def batch_norm(trace: Trace, out: Any, x: Value, weight: Value | None, bias: Value | None, *rest: Any) -> Any:
    """Statistics per channel: the channel's parameters and buffers go with it."""
    axis = x.axes[1]
    params = [p for p in (weight, bias, *rest[:2]) if isinstance(p, Value)]
    for p in params:
        axis = trace.space.tie(axis, p.axes[0])
    _attributes(trace, num_features=axis)
    axes = [a if k == 1 else trace.space.freeze(a) for k, a in enumerate(x.axes)]
    axes[1] = axis
    flag = weight is not None and bias is not None
    return Value(x.shape, axes, [flag if k == 1 else False for k in range(len(axes))])


def layer_norm(
    trace: Trace,
    out: Any,
    x: Value,
    shape: Sequence[int],
    weight: Value | None = None,
    bias: Value | None = None,
    *_: Any,
) -> Value:
    """The statistics run over the normalized dimensions, so cutting them would not be exact."""
    rank = len(shape)
    for value in (x, weight, bias):
        if value is not None:
            for axis in value.axes[-rank:]:
                trace.space.freeze(axis)
    return Value(x.shape, x.axes[:-rank] + [None] * rank, [flag and not isinstance(bias, Value) for flag in x.zero])


def group_norm(
    trace: Trace, out: Any, x: Value, groups: int, weight: Value | None = None, bias: Value | None = None, *_: Any
) -> Value:
    """Whole groups can be cut: a group's statistics see no other group."""
    outer, inner = trace.space.split(x.axes[1], (groups, x.shape[1] // groups))
    trace.space.freeze(inner, "")
    axis = x.axes[1]
    for p in (weight, bias):
        if p is not None:
            axis = trace.space.tie(axis, p.axes[0])
    _attributes(trace, num_channels=axis, num_groups=outer)
    for axis_ in x.axes[2:]:
        trace.space.freeze(axis_)
    axes = [x.axes[0], axis, *[None] * (len(x.shape) - 2)]
    return Value(x.shape, axes, [k != 0 and weight is not None and bias is not None for k in range(len(axes))])


def embedding(trace: Trace, out: Any, weight: Value, indices: Any, *_: Any) -> Value:
    """Rows are looked up by number, so only columns can be cut."""
    trace.space.freeze(weight.axes[0])
    rank = len(out.sizes) - 1
    _attributes(trace, embedding_dim=weight.axes[1])
    return Value(out.sizes, [*[None] * rank, weight.axes[1]], [*[True] * rank, weight.zero[1]])


def prelu(trace: Trace, out: Any, x: Value, weight: Value) -> Value:
    """One slope a channel, or one for all."""
    axes = list(x.axes)
    if weight.shape != (1,):
        axes[1] = trace.space.tie(axes[1], weight.axes[0])
        _attributes(trace, num_parameters=axes[1])
    return Value(x.shape, axes, list(x.zero))


def pool(trace: Trace, out: Any, x: Value, *_: Any, spatial: int, **__: Any) -> Any:
    """Pooling and resampling work on the last dimensions, so many as the operator has, and leave channels alone."""
    first = out[0] if isinstance(out, (tuple, list)) else out
    axes = [*x.axes[:-spatial], *(trace.space.freeze(a) for a in x.axes[-spatial:])]
    value = Value(first.sizes, axes, list(x.zero))
    return value if first is out else [value] * len(out)


_POOLS = """
max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d upsample_nearest1d upsample_nearest2d
upsample_nearest3d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d upsample_linear1d _upsample_bilinear2d_aa
"""
RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), conv_transpose),
    **dict.fromkeys(("matmul", "bmm", "mm"), matmul),
    **dict.fromkeys(("mv", "dot", "vdot"), vectors),
    **dict.fromkeys(("batch_norm", "instance_norm", "_native_batch_norm_legit_no_training"), batch_norm),
    **{name: partial(pool, spatial=int(re.findall(r"(\d)d", name)[0])) for name in _POOLS.split()},
    "convolution": convolution,
    "linear": linear,
    "addmm": addmm,
    "einsum": einsum,
    "bilinear": bilinear,
    "deform_conv2d": deform_conv,
    "grid_sampler": grid_sample,
    "scaled_dot_product_attention": attention,
    "layer_norm": layer_norm,
    "group_norm": group_norm,
    "embedding": embedding,
    "prelu": prelu,
}
