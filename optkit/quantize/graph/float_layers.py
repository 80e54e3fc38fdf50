"""Which layers of a converted graph stay in float, and why."""

from __future__ import annotations

from collections.abc import Iterable

from torch.fx import GraphModule, Node

from optkit.quantize.graph.annotate import (
    CONVOLUTIONS,
    LINEAR,
    PRODUCTS,
    aten,
    calls,
    constants,
    is_float,
    operand,
    tensor_at,
)
from optkit.quantize.graph.norms import TRANSPOSED

RECURRENT = {aten.gru.input, aten.lstm.input, aten.rnn_relu.input, aten.rnn_tanh.input}
ADDED = {aten.addmm.default, aten.baddbmm.default}
MATRICES = PRODUCTS | ADDED | {aten.mm.default}


def name_some(left: dict[str, str], most: int = 8) -> str:
    """Layers with their reasons, in a line."""
    named = "; ".join(f"{path} ({why})" for path, why in list(left.items())[:most])
    return named + (f"; and {len(left) - most} more" if len(left) > most else "")


def float_layers(graph: GraphModule) -> list[str]:
    """The layers of a converted graph that read float weights, by their path."""
    return list(left_in_float(graph))


def left_in_float(graph: GraphModule, protected: Iterable[str] = ()) -> dict[str, str]:
    """Why each layer that stays in float does, by its path.

    Args:
        graph: converted.
        protected: paths that were asked for.
    """
    found, constant, protected = {}, constants(graph), set(protected)
    for node in calls(graph, RECURRENT):
        stack = list(node.meta.get("nn_module_stack", {}).values())
        found[stack[-1][0] if stack and stack[-1][0] else node.name] = "a recurrent layer"
    for node in calls(graph, CONVOLUTIONS | LINEAR | TRANSPOSED | MATRICES):
        first = 1 if node.target in ADDED else 0
        x, weight = operand(node, first), operand(node, first + 1)
        if "dequantize" in str(weight.target) or x in constant or (node.target in MATRICES and weight not in constant):
            continue  # in int8, computed when an engine compiles, or a product of two activations
        path = str(weight.target).removesuffix(".weight") if weight.op == "get_attr" else node.name
        found[path] = "protected" if path in protected else _reason(node, weight, constant)
    return found


def _reason(layer: Node, weight: Node, constant: set[Node]) -> str:
    if layer.target in MATRICES:
        return f"{layer.target} multiplies with a parameter and is no linear layer"
    if layer.target in TRANSPOSED:
        return "a transposed convolution"
    if weight not in constant:
        return "its weight depends on the input"
    if weight.op != "get_attr":
        return "its weight is computed by the graph, which also writes to it"
    if not is_float(weight):
        graph = weight.graph.owning_module
        assert graph is not None
        return f"its weight is {tensor_at(graph, str(weight.target)).dtype}"
    return "the engine has no int8 kernel for it"
