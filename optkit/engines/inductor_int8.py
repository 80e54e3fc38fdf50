"""What int8 graphs need on inductor: rewrites before it compiles them, and a pass over the kernels that it made.

The pass counts the MACs of int8 kernels, and decides which buffer a sum may write to. This file knows the names that
inductor gives these kernels before and after its own patterns matched them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from optkit.core.compat.torch_compiler import graph_pass, int8_kernel, is_lowered
from optkit.core.compat.torch_operators import is_operator, private_aten, schema

aten = torch.ops.aten
UNSAFE_VIEW = private_aten("_unsafe_view.default")
# by name: torch knows these operators once they were imported
WEIGHT = "quantized_decomposed.dequantize_per_channel.default"
QUANTIZE = "quantized_decomposed.quantize_per_tensor.default"
DEQUANTIZE = "quantized_decomposed.dequantize_per_tensor.default"
# what inductor fuses into a convolution kernel
AFTER_CONVOLUTION = {
    "aten.relu.default", "aten.relu_.default", "aten.hardtanh.default", "aten.hardtanh_.default", "aten.silu.default",
    "aten.silu_.default", "aten.hardswish.default", "aten.hardswish_.default", QUANTIZE,
}  # fmt: skip


def fit_int8(graph: GraphModule) -> None:
    """Rewrites an int8 graph, in place, so that inductor has a kernel for each of its layers; it computes the same."""
    copy_shared_weights(graph)
    use_two_dimensions(graph)
    graph.recompile()


def copy_shared_weights(graph: GraphModule) -> None:
    """Gives each layer an int8 weight of its own: inductor lowers none of two layers that read the same (ALBERT's)."""
    seen: set[Node] = set()
    for node in graph.graph.nodes:
        if str(node.target) != WEIGHT:
            continue
        weight = node.args[0]
        if weight in seen:
            _read_buffer(graph, node, graph.get_buffer(weight.target).clone())
        seen.add(weight)


def use_two_dimensions(graph: GraphModule) -> None:
    """Makes one-dimensional int8 convolutions two-dimensional, of height 1.

    Inductor's int8 kernel for one dimension records a wrong shape: it adds the padding twice. What reads it next fails
    to compile, or reads beyond its end.
    """
    for node in list(graph.graph.nodes):
        if node.target is not aten.conv1d.default:
            continue
        x, weight = node.args[:2]
        if str(x.target) != DEQUANTIZE or str(weight.target) != WEIGHT:
            continue
        found: list[Any] = [*node.args, *(None, None, None, 1, 0, 1, 1)[len(node.args) :]]
        _, _, bias, stride, padding, dilation, groups = found
        # the pattern of a kernel has nothing between the convolution and what dequantizes
        with graph.graph.inserting_before(node):
            taller = graph.graph.call_function(aten.unsqueeze.default, (x.args[0], 2))
            given = graph.graph.call_function(x.target, (taller, *x.args[1:]))
            own = graph.graph.call_function(weight.target, weight.args, weight.kwargs)
            wide = [[first, *_as_list(n)] for first, n in ((1, stride), (0, padding), (1, dilation))]
            made = graph.graph.call_function(aten.conv2d.default, (given, own, bias, *wide, groups))
        _read_buffer(graph, own, graph.get_buffer(weight.args[0].target).unsqueeze(2))
        last = made
        while len(node.users) == 1 and str((user := next(iter(node.users))).target) in AFTER_CONVOLUTION:
            with graph.graph.inserting_before(user):
                last = graph.graph.call_function(user.target, (last, *user.args[1:]), user.kwargs)
            node = user
        with graph.graph.inserting_before(node):
            flat = graph.graph.call_function(aten.squeeze.dim, (last, 2))
        node.replace_all_uses_with(flat)
    graph.graph.eliminate_dead_code()


def _read_buffer(graph: GraphModule, dequantize: Node, weight: Tensor) -> None:
    """Lets a weight's dequantization read another buffer."""
    name = f"weight_of_{dequantize.name}"
    graph.register_buffer(name, weight)
    with graph.graph.inserting_before(dequantize):
        dequantize.args = (graph.graph.get_attr(name), *dequantize.args[1:])


def _as_list(numbers: Any) -> list[int]:
    return list(numbers) if isinstance(numbers, (list, tuple)) else [numbers]


def int8_pass(macs: list[int]) -> Any:
    """A pass for ``post_grad_custom_post_pass``: puts every int8 kernel's MACs into ``macs``, and guards the sums."""

    def count_and_guard(graph: Graph) -> None:
        macs.extend(found for node in graph.nodes if (found := kernel_macs(node)))
        keep_sums_apart(graph)

    return graph_pass(count_and_guard)


def kernel_macs(node: Node) -> int:
    """MACs of a oneDNN int8 convolution or linear kernel; 0 for any other node.

    A kernel gives ``out.numel()`` elements, each a sum over ``weight.numel() / out_channels`` products.
    """
    kind = int8_kernel(node)
    if kind is None:
        return 0
    packed = _argument(node, "packed_weight", "qw")
    if packed is None:
        return 0
    out, weight = node.meta["val"], packed.meta["val"]
    return int(out.numel()) * int(weight.numel()) // int(out.shape[1 if kind == "conv" else -1])


def keep_sums_apart(graph: Graph) -> None:
    """Lets int8 kernels add in place only to buffers that nothing else reads afterwards.

    Inductor's pattern for ``y + linear(x)`` writes the sum into y. It does not check whether y is an input, a parameter
    or a view of one, so the caller's tensor or the weights would change. A linear kernel writes the sum to a new buffer
    here; a convolution kernel, which can only add in place, gets a copy.
    """
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if int8_kernel(node) is None or _argument(node, "binary_op_name", "binary_post_op", "binary_attr") != "sum":
            continue
        target = _argument(node, "accum", "x_2", "other", "qaccum")
        if target is None or _is_fresh(target, node, order):
            continue
        if int8_kernel(node) == "linear":
            _replace(node, "add", "binary_op_name", "binary_post_op")
            continue
        with graph.inserting_before(node):
            copied = graph.call_function(aten.clone.default, (target,))
        copied.meta["val"] = target.meta["val"].clone()
        _replace(node, copied, "accum", "qaccum")


def _is_fresh(buffer: Node, writer: Node, order: dict[Node, int]) -> bool:
    """Whether a node gives a new buffer that nothing reads after the writer, not through a view either."""
    if buffer.op != "call_function" or _is_view(buffer):
        return False
    aliases = [buffer]
    for alias in aliases:
        for user in alias.users:
            if user is not writer and order.get(user, 0) > order[writer]:
                return False
            if _is_view(user):
                aliases.append(user)
    return True


def _is_view(node: Node) -> bool:
    """Whether what a node gives may share memory with what it takes."""
    target = node.target
    if is_lowered(target):
        return False
    if not is_operator(target) or target is UNSAFE_VIEW:
        return node.op == "call_function"  # getitem of a split, operators without a schema
    return any(returned.alias_info is not None for returned in schema(target).returns)


def _argument(node: Node, *names: str) -> Any:
    """The argument of one of these names: of inductor's patterns, or of the operator's schema."""
    if is_operator(node.target):
        named = {a.name: value for a, value in zip(schema(node.target).arguments, node.args, strict=False)}
    else:
        named = dict(node.kwargs)
    return next((named[name] for name in names if name in named), None)


def _replace(node: Node, value: Any, *names: str) -> None:
    """Gives the argument of one of these names another value."""
    if is_operator(node.target):
        place = next(i for i, a in enumerate(schema(node.target).arguments) if a.name in names)
        node.update_arg(place, value)
    else:
        node.update_kwarg(next(name for name in names if name in node.kwargs), value)
