"""The int8 kernels in the graph that inductor lowers: how many MACs they execute, and which buffer a sum may write to.

This file knows the names that inductor gives these kernels before and after its own patterns matched them.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.fx import Graph, Node


def int8_pass(macs: list[int]) -> Any:
    """A pass for ``post_grad_custom_post_pass``: puts every int8 kernel's MACs into ``macs``, and guards the sums."""
    from torch._inductor.custom_graph_pass import CustomGraphPass

    class Int8Pass(CustomGraphPass):
        def __call__(self, graph: Graph) -> None:
            macs.extend(found for node in graph.nodes if (found := kernel_macs(node)))
            keep_sums_apart(graph)

        def uuid(self) -> None:
            # a graph taken from inductor's cache would not pass here, and its share would be unknown
            return None

    return Int8Pass()


def kernel_macs(node: Node) -> int:
    """MACs of a oneDNN int8 convolution or linear kernel; 0 for any other node.

    A kernel gives ``out.numel()`` elements, each a sum over ``weight.numel() / out_channels`` products.
    """
    kind = _kind(node)
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
        if _kind(node) is None or _argument(node, "binary_op_name", "binary_post_op", "binary_attr") != "sum":
            continue
        target = _argument(node, "accum", "x_2", "other", "qaccum")
        if target is None or _is_fresh(target, node, order):
            continue
        if _kind(node) == "linear":
            _replace(node, "add", "binary_op_name", "binary_post_op")
            continue
        with graph.inserting_before(node):
            copied = graph.call_function(torch.ops.aten.clone.default, (target,))
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
    if hasattr(target, "_inductor_lowering_function"):
        return False
    if not isinstance(target, torch._ops.OpOverload) or target is torch.ops.aten._unsafe_view.default:
        return node.op == "call_function"  # getitem of a split, operators without a schema
    return any(returned.alias_info is not None for returned in target._schema.returns)


def _kind(node: Node) -> str | None:
    """``conv`` or ``linear`` for an int8 kernel."""
    target = node.target
    name = target.func.__qualname__ if isinstance(target, functools.partial) else str(target)
    if "_register_quantized_" not in name and "onednn.qconv" not in name and "onednn.qlinear" not in name:
        return None
    if "prepack" in name:
        return None
    return "conv" if "conv" in name else "linear"


def _argument(node: Node, *names: str) -> Any:
    """The argument of one of these names: of inductor's patterns, or of the operator's schema."""
    if isinstance(node.target, torch._ops.OpOverload):
        named = {a.name: value for a, value in zip(node.target._schema.arguments, node.args, strict=False)}
    else:
        named = dict(node.kwargs)
    return next((named[name] for name in names if name in named), None)


def _replace(node: Node, value: Any, *names: str) -> None:
    """Gives the argument of one of these names another value."""
    if isinstance(node.target, torch._ops.OpOverload):
        place = next(i for i, a in enumerate(node.target._schema.arguments) if a.name in names)
        node.update_arg(place, value)
    else:
        node.update_kwarg(next(name for name in names if name in node.kwargs), value)
