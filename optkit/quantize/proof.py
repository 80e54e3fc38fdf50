"""Whether what was quantized runs in int8: asked of the engine, once, before a stage is called done."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.fx import GraphModule, Node

from optkit.core.engine import made_for
from optkit.core.errors import StageError
from optkit.core.variant import Variant
from optkit.engines import ENGINES
from optkit.quantize.annotate import CONVOLUTIONS, LINEAR, PRODUCTS, aten, calls, constants, is_float, tensor_at
from optkit.quantize.norms import TRANSPOSED

RECURRENT = {aten.gru.input, aten.lstm.input, aten.rnn_relu.input, aten.rnn_tanh.input}
ADDED = {aten.addmm.default, aten.baddbmm.default}
MATRICES = PRODUCTS | ADDED | {aten.mm.default}


def prove_int8(graph: GraphModule, example: tuple[Tensor, ...], target: str, least: float) -> float:
    """The share of MACs that an engine executes in int8 kernels.

    Args:
        graph: an int8 graph that is annotated for the engine.
        example: inputs to compile for.
        target: the engine's name.
        least: the share that it must reach.

    Raises:
        StageError: it does not; the message names the layers that are in float.
    """
    variant = Variant("proof", None, made_for(target), {})
    share = float(ENGINES[target]().compile(graph, variant, example).facts()["int8_share"])
    if share >= least:
        return share
    left = left_in_float(graph)
    named = name_some(left)
    reason = f"in float: {named}" if left else f"its layers are annotated, but {target} runs some of them in float"
    fix = f"lower min_int8_share to {share:.3f}, or give another target"
    message = f"{share:.1%} of the MACs run in int8 on {target}, {least:.1%} are asked for; {reason}"
    raise StageError(message, key="min_int8_share", value=least, fix=fix)


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
        x, weight = node.args[1:3] if node.target in ADDED else node.args[:2]
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
        return f"its weight is {tensor_at(weight.graph.owning_module, str(weight.target)).dtype}"
    return "the engine has no int8 kernel for it"
