"""Dynamic int8 for linear layers on torchao's PT2E graph: activations are scaled at every call, none is calibrated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.observer import PlaceholderObserver
from torchao.quantization.pt2e.quantizer import QuantizationSpec
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

from optkit.core.compat.torch_graphs import return_structure
from optkit.core.compat.torch_tracing import recurrence_by_shape
from optkit.core.compat.torchao import annotation
from optkit.core.errors import StageError, UserError
from optkit.core.loaders import as_example
from optkit.core.model_copy import duplicate
from optkit.core.probe import keep_probe
from optkit.engines.program import export_program, module_of, named_failures
from optkit.quantize.graph.annotate import LINEAR, Scheme, weighted
from optkit.quantize.graph.conversion import convert, prepare, quiet
from optkit.quantize.graph.observers import SMALLEST
from optkit.quantize.graph.simplify import simplify
from optkit.quantize.graph.targets import Int8Target, find_target
from optkit.quantize.graph.writes import functional
from optkit.quantize.options import REVISION, definite_range
from optkit.quantize.static import check_exportable


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
    example_inputs: Tensor | tuple[Tensor, ...],
    *,
    target: str = "inductor",
    reduce_range: bool | None = None,
) -> DynamicInt8:
    """Dynamic int8 quantization of linear layers: int8 weights per channel, uint8 activations per tensor.

    Scale and zero point of an activation are those of the very batch that is computed, so an example's answer depends,
    within the rounding, on what else is in its batch. Nothing is calibrated.

    Args:
        model: a float model in eval mode; not touched.
        example_inputs: a tensor or a tuple of tensors to export with, real ones, of any batch size; it and the length
            of texts stay free. Some stay with the graph: an engine's answers are compared with the graph's on them.
        target: the engine whose kernels the graph is annotated for.
        reduce_range: give weights 7 of their 8 bits; None does so where this processor's kernels would overflow.

    Raises:
        UserError: no such target, or a model without linear layers.
        StageError: no linear layer could be quantized.
    """
    find_target(target, dynamic=True)
    example_inputs = as_example(example_inputs)
    check_linears(module_of(model))
    reduce_range = definite_range(reduce_range)
    graph = replay_dynamic(model, example_inputs, reduce_range, target)
    if not describe_dynamic(graph)["quantized_weights"]:
        raise StageError("no linear layer of this model could be quantized")
    keep_probe(graph, example_inputs)
    return DynamicInt8(graph, reduce_range, target)


def replay_dynamic(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    reduce_range: bool,
    target: str | Int8Target = "inductor",
    revision: int = REVISION,
) -> GraphModule:
    """The structure that `quantize_dynamic` gives; on a fresh model, the weights are loaded over it."""
    from optkit.quantize.graph.targets.inductor import name_calls_apart

    with quiet(), recurrence_by_shape():
        with named_failures():
            program, structure = export_program(duplicate(check_exportable(model), {}).eval(), example_inputs)
        graph = (functional(program) if revision > 2 else program).module()
        return_structure(graph, structure)
        name_calls_apart(graph)
        if revision > 1:
            simplify(graph)
        prepared = prepare(graph, _Annotator(Scheme(reduce_range, histogram=False, revision=revision)))
        with torch.no_grad():
            prepared(*example_inputs)
        return convert(prepared, target)


class _Annotator(x86.X86InductorQuantizer):
    """Torchao's for linears, and the linears that its patterns miss: those called as functions, or parametrized."""

    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        observer = PlaceholderObserver.with_args(eps=SMALLEST)
        self.activation = QuantizationSpec(torch.uint8, observer, 0, 255, torch.per_tensor_affine, is_dynamic=True)
        self.weight, self.revision = scheme.weight(-128), scheme.revision
        config = x86.QuantizationConfig(self.activation, self.activation, self.weight, None, False)
        self.set_function_type_qconfig(nn.functional.linear, config)

    def annotate(self, model: GraphModule) -> GraphModule:
        model = super().annotate(model)
        for node in weighted(model) if self.revision > 1 else ():
            if node.target in LINEAR and "quantization_annotation" not in node.meta:
                specs = {node.args[0]: self.activation, node.args[1]: self.weight}
                node.meta["quantization_annotation"] = annotation(specs)
        return model


def check_linears(model: nn.Module) -> None:
    """Raises UserError for a model that has no linear layer, and no matrix that a linear could be called with."""
    if not any(parameter.dim() == 2 for parameter in model.parameters()):
        fix = "convolutions need quantize/static"
        raise UserError(f"this {type(model).__name__} has no linear layer to quantize dynamically", fix=fix)


def describe_dynamic(graph: GraphModule) -> dict[str, Any]:
    """How many linear layers read int8 weights, and how many activations are scaled at every call."""
    targets = [str(node.target) for node in graph.graph.nodes]
    return {
        "quantized_weights": sum("dequantize_per_channel" in t for t in targets),
        "dynamic_activations": sum("choose_qparams" in t for t in targets),
    }
