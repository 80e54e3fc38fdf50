"""Static int8 on torchao's PT2E graph, for the inductor engine on x86."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from optkit.core.environment import cpu
from optkit.core.errors import StageError


@dataclass(frozen=True)
class Quantized:
    """A converted graph, and what rebuilds it.

    Attributes:
        module: the graph.
        activations: scale and zero point of every activation in it, by node name.
        reduce_range: whether activations take 7 bits.
    """

    module: GraphModule
    activations: dict[str, list[float | int]]
    reduce_range: bool


def products_saturate() -> bool:
    """Whether this processor's int8 kernels add pairs of products in 16 bits (x86 without VNNI), which overflow."""
    isa = set(cpu()["isa"])
    return "avx2" in isa and not isa & {"avx512_vnni", "avx_vnni"}


def quantize_static(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    batches: Iterable[tuple[Tensor, ...]],
    *,
    reduce_range: bool | None = None,
) -> Quantized:
    """Post-training static quantization: int8 weights per channel, uint8 activations per tensor.

    Args:
        model: a float model in eval mode; not touched.
        example_inputs: inputs of at least 2 examples, to export with; the batch size stays dynamic.
        batches: inputs to calibrate with, one tuple a batch.
        reduce_range: give activations 7 of their 8 bits, so that sums of two products fit 16 bits. None does so where
            this processor's kernels need it (`products_saturate`).

    Returns:
        The graph with quantize and dequantize nodes, which inductor lowers to int8 kernels.

    Raises:
        StageError: no operator could be quantized.
    """
    reduce_range = products_saturate() if reduce_range is None else reduce_range
    prepared = _prepare(model, example_inputs, reduce_range)
    with torch.no_grad():
        for inputs in batches:
            prepared(*inputs)
    converted = _convert(prepared)
    activations = {n.name: [float(n.args[1]), int(n.args[2])] for n in _activation_nodes(converted)}
    if not activations:
        raise StageError("no operator of this model could be quantized")
    return Quantized(converted, activations, reduce_range)


def replay_static(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    activations: dict[str, list[float | int]],
    reduce_range: bool = False,
) -> GraphModule:
    """The structure that `quantize_static` gave, rebuilt without calibration; the weights are loaded over it.

    Args:
        model: a fresh model of the structure that was quantized.
        example_inputs: as for `quantize_static`.
        activations, reduce_range: from `Quantized`.
    """
    prepared = _prepare(model, example_inputs, reduce_range)
    with torch.no_grad():
        prepared(*example_inputs)
    converted = _convert(prepared)
    for node in _activation_nodes(converted):
        scale, zero_point = activations[node.name]
        node.args = (node.args[0], scale, zero_point, *node.args[3:])
    converted.recompile()
    return converted


def _prepare(model: nn.Module, example_inputs: tuple[Tensor, ...], reduce_range: bool) -> GraphModule:
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    batch_is_dynamic = tuple({0: torch.export.Dim.AUTO} for _ in example_inputs)
    with _quiet():
        exported = torch.export.export(copy.deepcopy(model).eval(), example_inputs, dynamic_shapes=batch_is_dynamic)
        graph = exported.module()
        _name_calls_apart(graph)
        scheme = x86.get_default_x86_inductor_quantization_config(reduce_range=reduce_range)
        return prepare_pt2e(graph, x86.X86InductorQuantizer().set_global(scheme))


def _name_calls_apart(graph: GraphModule) -> None:
    """Gives every call of a shared module, such as the one ReLU of a torchvision block, its own source name.

    The annotator groups nodes by the module path they came from, and takes two calls of one ReLU for one partition
    with two outputs ("Input partition has more than one output node"). The stack's keys tell the calls apart.
    """
    for node in graph.graph.nodes:
        if stack := node.meta.get("nn_module_stack"):
            call = list(stack)[-1]
            node.meta["nn_module_stack"] = stack | {call: (call, stack[call][1])}


def _drop_unused(graph: GraphModule) -> None:
    """Removes the float weights whose int8 copies the graph reads instead, or they would be saved too."""
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for name, _ in [*graph.named_parameters(), *graph.named_buffers()]:
        if name not in used:
            path, _, leaf = name.rpartition(".")
            delattr(graph.get_submodule(path), leaf)


def _convert(prepared: GraphModule) -> GraphModule:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    with _quiet():
        converted = convert_pt2e(prepared)
    _drop_unused(converted)
    return converted


def _activation_nodes(graph: GraphModule) -> Iterator[Node]:
    """The quantize and dequantize nodes that carry a literal scale and zero point."""
    ops = torch.ops.quantized_decomposed
    per_tensor = (ops.quantize_per_tensor.default, ops.dequantize_per_tensor.default)
    return (node for node in graph.graph.nodes if node.target in per_tensor)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torchao's deprecation warnings, which a user can do nothing about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def describe(quantized: Quantized) -> dict[str, Any]:
    """How many operators read quantized weights, how many activations are quantized, and to how many bits."""
    weights = [n for n in quantized.module.graph.nodes if "dequantize_per_channel" in str(n.target)]
    return {
        "quantized_weights": len(weights),
        "quantized_activations": len(quantized.activations),
        "activation_bits": 7 if quantized.reduce_range else 8,
    }
