"""What ONNX Runtime's CPU kernels fuse around int8.

A convolution becomes an int8 kernel only between int8 tensors, so what it gives is quantized too, after the activation
that is fused into it, and so are both terms and the result of a residual sum. Linears and the products of queries
and keys may give float. A concatenation is int8 where both what it takes and what it gives are quantized. Activations
are uint8 with any zero point, which the kernels pad with.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from functools import partial

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer import Quantizer

from optkit.quantize.graph.annotate import (
    ADDITIONS,
    CONVOLUTIONS,
    IN_FLOAT,
    LINEAR,
    Edge,
    EdgeQuantizer,
    Scheme,
    aten,
    calls,
    is_float,
    moved_up,
    operand,
    operands,
    products,
    weighted,
)
from optkit.quantize.graph.attention import explicit_attention
from optkit.quantize.graph.targets.target import Int8Target

LOWEST = "lowest_float"
# fused into a convolution by its range: what is below zero is cut by a zero point of 0
CLAMPS = {
    aten.relu.default, aten.relu_.default, aten.relu6.default, aten.relu6_.default, aten.hardtanh.default,
    aten.hardtanh_.default,
}  # fmt: skip
CLAMPS_OF_ENDS = {aten.clamp.default, aten.clamp_.default, aten.clamp_min.default, aten.clamp_min_.default}
POOLS = {aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default, aten.mean.dim}


def rewrite(program: ExportedProgram) -> GraphModule:
    """The graph, its attention as two products, and clamps at zero as ReLUs."""
    graph = explicit_attention(program)
    for node in calls(graph, CLAMPS_OF_ENDS):
        if node.args[1:] == (0,) and not node.kwargs:
            node.target, node.args = aten.relu.default, node.args[:1]
    graph.recompile()
    return graph


def quantizer(scheme: Scheme) -> Quantizer:
    """Annotates `edges`."""
    return _Shielding(scheme, edges, lambda edge: False)


class _Shielding(EdgeQuantizer):
    """Puts an operator that changes nothing behind layers that are to stay in float.

    Between int8 tensors ONNX Runtime rounds float weights itself, with one scale for all channels, unless there is
    something before the quantization that it does not know to see through.
    """

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        kept = [node for node in calls(model, CONVOLUTIONS | LINEAR) if IN_FLOAT in node.meta]
        if kept:
            model.register_buffer(LOWEST, torch.tensor(torch.finfo(torch.float32).min))
        for last in map(_clamped, kept):
            with model.graph.inserting_after(last):
                lowest = model.graph.get_attr(LOWEST)
            with model.graph.inserting_after(lowest):
                shield = model.graph.call_function(aten.maximum.default, (last, lowest))
            lowest.meta["val"] = getattr(model, LOWEST)
            shield.meta = {key: value for key, value in last.meta.items() if key != IN_FLOAT}
            last.replace_all_uses_with(shield, delete_user_cb=partial(operator.is_not, shield))
        model.recompile()
        return model


def edges(graph: GraphModule) -> Iterable[Edge]:
    """The edges that carry int8."""
    found = [(operand(node, 0), node) for node in weighted(graph)]
    found += [(term, node) for node in products(graph) for term in operands(node)]
    sums = residuals(graph)
    found += [(term, node) for node in sums for term in operands(node)]
    convolutions = [node for node in weighted(graph) if node.target in CONVOLUTIONS]
    for node in [*convolutions, *sums]:
        last = _clamped(node)
        found += [(last, user) for user in last.users if user.op != "output"]
    return moved_up(found, over_concatenations=False)


def residuals(graph: GraphModule) -> list[Node]:
    """Sums of two activations, one of them a convolution's output."""
    found = []
    for node in calls(graph, ADDITIONS):
        terms = [x for x in node.args[:2] if is_float(x) and x.op != "get_attr"]
        if len(terms) == 2 and any(x.target in CONVOLUTIONS for x in terms):
            found.append(node)
    return found


def _clamped(node: Node) -> Node:
    """The node, or the clamp that alone reads it."""
    users = list(node.users)
    return users[0] if len(users) == 1 and _is_clamp(users[0]) else node


def _is_clamp(node: Node) -> bool:
    """Whether ONNX Runtime fuses a node into the quantization behind it; of a clamp with one end it does not."""
    if node.target not in CLAMPS_OF_ENDS:
        return node.target in CLAMPS
    ends = (*node.args[1:], *node.kwargs.values())
    return len(ends) == 2 and all(isinstance(end, (int, float)) for end in ends)


TARGET = Int8Target("onnxruntime", "onnxruntime", rewrite, quantizer, integer_bias=True, dynamic=True)
