"""What inductor fuses around int8 on x86: torchao's own annotator knows it, but for linears outside of `nn.Linear`."""

from __future__ import annotations

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer import Quantizer
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

from optkit.core.compat.torchao import annotation
from optkit.quantize.graph.annotate import IN_FLOAT, LINEAR, Scheme, aten, calls, weighted
from optkit.quantize.graph.targets.target import Int8Target

KERNELS = LINEAR | {aten.conv1d.default, aten.conv2d.default}  # that inductor has in int8


def rewrite(program: ExportedProgram) -> GraphModule:
    """The graph, every call of a shared module told apart."""
    graph = program.module()
    assert isinstance(graph, GraphModule)
    name_calls_apart(graph)
    add_computed_biases(graph)
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


def add_computed_biases(graph: GraphModule) -> None:
    """Makes a sum of a bias that is no parameter (that of Swin V2's queries, keys and values).

    Inductor's int8 linear cannot take it: "FakeTensorUpdater cannot recompute metadata".
    """
    for node in calls(graph, LINEAR):
        bias = node.args[2] if len(node.args) > 2 else None
        if isinstance(bias, Node) and bias.op != "get_attr":
            with graph.graph.inserting_after(node):
                total = graph.graph.call_function(torch.ops.aten.add.Tensor)
            node.replace_all_uses_with(total)
            node.args, total.args, total.meta = node.args[:2], (node, bias), dict(node.meta)
    graph.recompile()


def quantizer(scheme: Scheme) -> Quantizer:
    """Torchao's, with our observers."""
    activation = scheme.activation(symmetric=False)
    config = x86.QuantizationConfig(activation, activation, scheme.weight(-128), None, False)
    return _Annotator(scheme).set_global(config)


class _Annotator(x86.X86InductorQuantizer):
    """Torchao's, with two differences.

    It leaves alone protected layers, and integers, which models that count positions (RoBERTa) multiply by the mask.
    And it takes what torchao's patterns miss: linears that a module calls as functions (the attention of torchvision's
    Swin and ViT), one-dimensional convolutions, and convolutions of a class of their own.
    """

    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        self.scheme = scheme

    def annotate(self, model: GraphModule) -> GraphModule:
        for node in super().annotate(model).graph.nodes:
            found = node.meta.get("quantization_annotation")
            of_floats = found and all(read.meta["val"].is_floating_point() for read in found.input_qspec_map)
            if found and (IN_FLOAT in node.meta or not of_floats):
                del node.meta["quantization_annotation"]
        kinds = KERNELS if self.scheme.revision > 1 else LINEAR
        for node in weighted(model):
            if node.target in kinds and "quantization_annotation" not in node.meta:
                x, weight = node.args[:2]
                specs = {x: self.scheme.activation(symmetric=False), weight: self.scheme.weight(-128)}
                node.meta["quantization_annotation"] = annotation(specs)
        return model


TARGET = Int8Target("inductor", "inductor", rewrite, quantizer, dynamic=True)
