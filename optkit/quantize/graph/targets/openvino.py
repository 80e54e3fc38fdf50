"""What OpenVINO's CPU plugin fuses around int8.

Convolutions and linears read int8, and so do the products of queries and keys. A residual sum is fused into the
convolution that gives one of its terms if both terms are int8. Convolutions take symmetric activations, for a zero
point would have to be padded with; linears take any. What softmax gives stays in float, as do norms.

All activations are uint8; a symmetric one has the zero point 128. Processors without AMX have no kernels for int8
activations of convolutions. There OpenVINO 2026.4 turns int8 into uint8, and behind a concatenation it drops the zero
point: the answers are wrong.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch.export import ExportedProgram
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantizer import Quantizer

from optkit.quantize.graph.annotate import (
    ADDITIONS,
    CONVOLUTIONS,
    LINEAR,
    Edge,
    EdgeQuantizer,
    Scheme,
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


def rewrite(program: ExportedProgram) -> GraphModule:
    """The graph, its attention as two products."""
    return explicit_attention(program)


def quantizer(scheme: Scheme) -> Quantizer:
    """Annotates `edges`."""
    return EdgeQuantizer(scheme, edges, lambda edge: edge[1].target not in LINEAR)


def edges(graph: GraphModule) -> Iterable[Edge]:
    """The edges that carry int8."""
    found = [(operand(node, 0), node) for node in weighted(graph)]
    found += [(term, node) for node in products(graph) for term in operands(node)]
    return moved_up([*found, *residuals(graph)], over_concatenations=True)


def residuals(graph: GraphModule) -> list[Edge]:
    """Both terms of every sum that has a convolution's output as a term."""
    found = []
    for node in calls(graph, ADDITIONS):
        terms = [x for x in node.args[:2] if is_float(x) and x.op != "get_attr"]
        if len(terms) == 2 and any(x.target in CONVOLUTIONS for x in terms):
            found += [(x, node) for x in terms]
    return found


TARGET = Int8Target("openvino", "openvino", rewrite, quantizer)
