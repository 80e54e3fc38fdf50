"""Dynamic int8 for linear layers on torchao's PT2E graph: activations are scaled at every call, none is calibrated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from optkit.core.checks import check_choice
from optkit.core.errors import StageError, UserError
from optkit.core.task import free_dims
from optkit.quantize.annotate import Scheme
from optkit.quantize.conversion import convert, prepare, quiet
from optkit.quantize.pt2e import REVISION, copy_of, definite_range
from optkit.quantize.simplify import simplify

DYNAMIC_TARGETS = ("inductor", "onnxruntime")


@dataclass(frozen=True)
class DynamicInt8:
    """A converted graph, and what rebuilds it.

    Attributes:
        module: the graph.
        reduce_range: whether weights take 7 bits.
        target: the engine whose kernels it is for.
    """

    module: GraphModule
    reduce_range: bool
    target: str


def quantize_dynamic(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    *,
    target: str = "inductor",
    reduce_range: bool | None = None,
) -> DynamicInt8:
    """Dynamic int8 quantization of linear layers: int8 weights per channel, uint8 activations per tensor.

    Scale and zero point of an activation are those of the very batch that is computed, so an example's answer depends,
    within the rounding, on what else is in its batch. Nothing is calibrated.

    Args:
        model: a float model in eval mode; not touched.
        example_inputs: inputs of at least 2 examples, to export with; batch size and length of texts stay free.
        target: the engine whose kernels the graph is annotated for.
        reduce_range: give weights 7 of their 8 bits; None does so where this processor's kernels would overflow.

    Raises:
        UserError: no such target, or a model without linear layers.
        StageError: no linear layer could be quantized.
    """
    check_choice("target", target, DYNAMIC_TARGETS)
    check_linears(model)
    reduce_range = definite_range(reduce_range)
    graph = replay_dynamic(model, example_inputs, reduce_range, target)
    if not describe_dynamic(graph)["quantized_weights"]:
        raise StageError("no linear layer of this model could be quantized")
    return DynamicInt8(graph, reduce_range, target)


def replay_dynamic(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    reduce_range: bool,
    target: str = "inductor",
    revision: int = REVISION,
) -> GraphModule:
    """The structure that `quantize_dynamic` gives; on a fresh model, the weights are loaded over it."""
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    from optkit.quantize.targets.inductor import name_calls_apart

    with quiet():
        shapes = free_dims(example_inputs, model)
        graph = torch.export.export(copy_of(model).eval(), example_inputs, dynamic_shapes=shapes).module()
        name_calls_apart(graph)
        if revision > 1:
            simplify(graph)
        scheme = x86.get_default_x86_inductor_quantization_config(is_dynamic=True)
        scheme = replace(scheme, weight=Scheme(reduce_range, histogram=False).weight(-128))
        quantizer = x86.X86InductorQuantizer().set_function_type_qconfig(nn.functional.linear, scheme)
        prepared = prepare(graph, quantizer)
        with torch.no_grad():
            prepared(*example_inputs)
        return convert(prepared, target)


def check_linears(model: nn.Module) -> None:
    """Raises UserError for a model that has no linear layer."""
    if not any(isinstance(module, nn.Linear) for module in model.modules()):
        fix = "convolutions need quantize/static"
        raise UserError(f"this {type(model).__name__} has no linear layer to quantize dynamically", fix=fix)


def describe_dynamic(graph: GraphModule) -> dict[str, Any]:
    """How many linear layers read int8 weights, and how many activations are scaled at every call."""
    targets = [str(node.target) for node in graph.graph.nodes]
    return {
        "quantized_weights": sum("dequantize_per_channel" in t for t in targets),
        "dynamic_activations": sum("choose_qparams" in t for t in targets),
    }
