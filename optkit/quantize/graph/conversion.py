"""torchao's preparation and conversion of a graph, with what must be hidden from it and mended after it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from optkit.core.engine import MADE_FOR
from optkit.quantize.graph.annotate import CONVOLUTIONS, LINEAR, tensor_at
from optkit.quantize.graph.layers import int8_layers
from optkit.quantize.graph.norms import BATCH_NORM, fold_norms
from optkit.quantize.graph.observers import WeightObserver
from optkit.quantize.graph.simplify import drop_unused
from optkit.quantize.graph.targets import Int8Target, find_target

MOST_STEPS = 2.0**30  # of a bias; half of what 32 bits hold


def prepare(graph: GraphModule, quantizer: Any) -> GraphModule:
    """Observers where the quantizer wants them; batch norms are folded into the layers they follow, in place."""
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

    fold_norms(graph)
    # torchao would fold the others too, also where that changes what the graph computes
    _hide(graph, _norms(graph))
    with quiet():
        prepared = prepare_pt2e(graph, quantizer)
    return _show(prepared)


def convert(prepared: GraphModule, target: str | Int8Target = "inductor") -> GraphModule:
    """The int8 graph of a prepared one, for a target."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    target = find_target(target)
    if target.integer_bias:
        _leave_room_for_biases(prepared)
    # at a batch norm, torchao exports its patterns of training graphs, for a minute, to find none
    _hide(prepared, _norms(prepared))
    with quiet():
        converted = _show(convert_pt2e(prepared))
    drop_unused(converted)  # the float weights, whose int8 copies the graph reads instead
    # torchao's module refuses train() and eval(), a fresh one takes both
    found = GraphModule(converted, converted.graph)
    found.meta = converted.meta | {MADE_FOR: target.name}
    return found


def activation_nodes(graph: GraphModule) -> Iterator[Node]:
    """The quantize and dequantize nodes that carry a literal scale and zero point."""
    ops = torch.ops.quantized_decomposed
    per_tensor = (ops.quantize_per_tensor.default, ops.dequantize_per_tensor.default)
    return (node for node in graph.graph.nodes if node.target in per_tensor)


@contextmanager
def quiet() -> Iterator[None]:
    """Without torchao's deprecation warnings, which a user can do nothing about, and its draws of random examples."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        yield


@torch.no_grad()
def _leave_room_for_biases(prepared: GraphModule) -> None:
    """Widens the scales of weights, in place, by which a bias would not fit 32 bits.

    An engine with integer biases counts them in steps of the product of both scales. Where these are too small for a
    bias, the channel's weights add less than the bias's own rounding, so that coarser ones lose nothing.
    """
    for layer in int8_layers(prepared):
        bias = layer.node.args[2] if len(layer.node.args) > 2 else None
        if layer.node.target not in CONVOLUTIONS | LINEAR or not isinstance(bias, Node) or bias.op != "get_attr":
            continue
        given, weight = (prepared.get_submodule(name) for name in layer.observers)
        if isinstance(weight, WeightObserver):
            steps = tensor_at(prepared, str(bias.target)).abs().double() / given.calculate_qparams()[0]  # type: ignore[operator]
            least = steps / MOST_STEPS
            weight.reach_at_least(least * (weight.quant_max - weight.quant_min) / 2)


def _norms(graph: GraphModule) -> list[Node]:
    return [node for node in graph.graph.nodes if node.target is BATCH_NORM]


def _batch_norm(*args: Any) -> Tensor:
    """The operator under a name that torchao does not know for a batch norm."""
    return BATCH_NORM(*args)


def _hide(graph: GraphModule, norms: Iterable[Node]) -> None:
    for norm in norms:
        norm.target = _batch_norm
    graph.recompile()


def _show(graph: GraphModule) -> GraphModule:
    for norm in graph.graph.nodes:
        if norm.target is _batch_norm:
            norm.target = BATCH_NORM
    graph.recompile()
    return graph
