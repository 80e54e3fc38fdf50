"""What inductor fuses around int8 on x86: torchao's own annotator knows it."""

from __future__ import annotations

from torch.export import ExportedProgram
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantizer import Quantizer
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

from optkit.quantize.annotate import IN_FLOAT, Scheme

SIGNED = False


def rewrite(program: ExportedProgram) -> GraphModule:
    """The graph, every call of a shared module told apart."""
    graph = program.module()
    assert isinstance(graph, GraphModule)
    name_calls_apart(graph)
    return graph


def name_calls_apart(graph: GraphModule) -> None:
    """Gives every call of a shared module, such as the one ReLU of a torchvision block, its own source name.

    The annotator groups nodes by the module path they came from, and takes two calls of one ReLU for one partition
    with two outputs ("Input partition has more than one output node"). The stack's keys tell the calls apart.
    """
    for node in graph.graph.nodes:
        if stack := node.meta.get("nn_module_stack"):
            call = list(stack)[-1]
            node.meta["nn_module_stack"] = stack | {call: (call, stack[call][1])}


def quantizer(scheme: Scheme) -> Quantizer:
    """Torchao's, with our observers."""
    activation = scheme.activation(symmetric=False)
    config = x86.QuantizationConfig(activation, activation, scheme.weight(-128), None, False)
    return _OfFloats().set_global(config)


class _OfFloats(x86.X86InductorQuantizer):
    """Leaves integers alone, which models that count positions (RoBERTa) multiply by the mask, and protected layers."""

    def annotate(self, model: GraphModule) -> GraphModule:
        for node in super().annotate(model).graph.nodes:
            found = node.meta.get("quantization_annotation")
            of_floats = found and all(read.meta["val"].is_floating_point() for read in found.input_qspec_map)
            if found and (IN_FLOAT in node.meta or not of_floats):
                del node.meta["quantization_annotation"]
        return model
