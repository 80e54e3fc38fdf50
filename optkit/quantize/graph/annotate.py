"""Annotation: which edges of a graph carry int8, worked out from what an engine fuses."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer import (
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

from optkit.core.checks import check_pattern
from optkit.core.compat.torch_operators import private_aten
from optkit.core.compat.torchao import annotation
from optkit.quantize.graph.observers import ActivationObserver, WeightObserver

aten = torch.ops.aten
Edge = tuple[Node, Node]
IN_FLOAT = "in_float"  # in the meta of a node that is to stay as it is

CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding, aten.conv2d.padding}
LINEAR = {aten.linear.default}
PRODUCTS = {aten.matmul.default, aten.bmm.default}
ADDITIONS = {aten.add.Tensor, aten.add_.Tensor}
SOFTMAX = {aten.softmax.int, private_aten("_softmax.default")}
CONCATENATIONS = {aten.cat.default}
# give the values that they take, in another order or fewer of them
LAYOUT = {
    aten.view.default, aten.reshape.default, aten.permute.default, aten.transpose.int, aten.t.default,
    aten.flatten.using_ints, aten.unsqueeze.default, aten.squeeze.dim, aten.slice.Tensor, aten.select.int,
    aten.expand.default, aten.contiguous.default, aten.clone.default, aten.dropout.default, aten.max_pool2d.default,
    aten.max_pool1d.default, aten.unflatten.int, private_aten("_unsafe_view.default"),
}  # fmt: skip


def tensor_at(module: nn.Module, path: str) -> Tensor:
    """A parameter or buffer by its path."""
    owner, _, name = path.rpartition(".")
    found = getattr(module.get_submodule(owner), name)
    assert isinstance(found, Tensor)
    return found


def operand(call: Node, place: int) -> Node:
    """What a call reads as its argument in this place, where that is no constant."""
    found = call.args[place]
    assert isinstance(found, Node)
    return found


def operands(call: Node) -> tuple[Node, Node]:
    """Input and weight of a layer, or both factors of a product."""
    return operand(call, 0), operand(call, 1)


def concatenated(call: Node) -> list[Node]:
    """The tensors that a concatenation puts together."""
    given = call.args[0]
    assert isinstance(given, (list, tuple))
    return [node for node in given if isinstance(node, Node)]


def is_float(node: object) -> TypeGuard[Node]:
    """Whether a node gives an fp32 tensor."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return isinstance(value, Tensor) and value.dtype == torch.float32


def calls(graph: GraphModule, targets: Iterable[object]) -> list[Node]:
    """The calls of these operators, in order."""
    wanted = set(targets)
    return [n for n in graph.graph.nodes if n.op == "call_function" and n.target in wanted]


def weighted(graph: GraphModule) -> list[Node]:
    """Convolutions and linears of activations whose weight is a parameter, but for those that stay in float.

    Those of constants, such as the position biases of Swin V2, are computed when an engine compiles.
    """
    constant = constants(graph)
    return [
        n
        for n in calls(graph, CONVOLUTIONS | LINEAR)
        if operand(n, 1).op == "get_attr" and is_float(x := n.args[0]) and x not in constant and IN_FLOAT not in n.meta
    ]


def constants(graph: GraphModule) -> set[Node]:
    """Parameters and buffers, and what is computed from them alone."""
    found: set[Node] = set()
    for node in graph.graph.nodes:
        read = node.all_input_nodes
        if node.op == "get_attr" or (node.op == "call_function" and read and found.issuperset(read)):
            found.add(node)
    return found


def comes_from(node: object, targets: Collection[object]) -> bool:
    """Whether a tensor is what one of these operators gave, but for its layout."""
    while isinstance(node, Node) and node.target in LAYOUT:
        node = node.args[0]
    return isinstance(node, Node) and node.target in targets


def moved_up(edges: Iterable[Edge], *, over_concatenations: bool) -> list[Edge]:
    """Edges moved over operators that only move values, as far as all that reads those values is int8 as well.

    The producer then writes int8, and what lies between moves a quarter of the bytes.

    Args:
        edges: those that carry int8.
        over_concatenations: whether the engine knows that what is put together of int8 is int8.
    """
    found = dict.fromkeys(edges)
    moving = True
    while moving:
        moving = False
        for source, _ in list(found):
            below = [(source, user) for user in source.users]
            # linears gain nothing from it: engines look for the quantization right before them
            if not all(edge in found and edge[1].target not in LINEAR for edge in below):
                continue
            if source.target in LAYOUT and is_float(source.args[0]):
                above = [(operand(source, 0), source)]
            elif over_concatenations and source.target in CONCATENATIONS and _of_activations(source):
                above = [(n, source) for n in concatenated(source)]
            else:
                continue
            for edge in below:
                del found[edge]
            found |= dict.fromkeys(above)
            moving = True
            break
    return list(found)


def _of_activations(concatenation: Node) -> bool:
    return all(is_float(n) and n.op != "get_attr" for n in concatenated(concatenation))


def products(graph: GraphModule) -> list[Node]:
    """Products of two activations, of which none is a softmax, but for those that stay in float."""
    return [
        n
        for n in calls(graph, PRODUCTS)
        if all(is_float(x) and x.op != "get_attr" and not comes_from(x, SOFTMAX) for x in n.args[:2])
        and IN_FLOAT not in n.meta
    ]


def behind_observer(node: Node) -> Node:
    """What an observer sees; the node itself where none stands before it."""
    return operand(node, 0) if node.op == "call_module" else node


def layer_path(node: Node) -> str:
    """Where in the model a convolution, linear or product is: ``layer1.0.conv1``, ``encoder.0.attention.matmul``."""
    weight = behind_observer(operand(node, 1))
    if weight.op == "get_attr":
        return str(weight.target).removesuffix(".weight")
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return f"{stack[-1][0]}.matmul" if stack and stack[-1][0] else node.name


def keep_in_float(graph: GraphModule, patterns: Iterable[str]) -> tuple[str, ...]:
    """Marks the layers whose `layer_path` matches one of the patterns, so that no quantizer touches them.

    Returns:
        Their paths.

    Raises:
        UserError: a pattern that matches nothing.
    """
    nodes = [*weighted(graph), *products(graph)]
    paths = {node: layer_path(node) for node in nodes}
    kept: dict[str, None] = {}
    for pattern in patterns:
        matching = check_pattern("protect", pattern, paths.values(), "layer")
        for node in nodes:
            if paths[node] in matching:
                node.meta[IN_FLOAT] = True
                kept[paths[node]] = None
    return tuple(kept)


class EdgeQuantizer(Quantizer):
    """Weights of convolutions and linears to int8, and the activations on chosen edges to uint8.

    Args:
        scheme: of both.
        edges: gives the edges of a graph that carry int8.
        symmetric: whether an engine wants the activation on an edge symmetric.
    """

    def __init__(
        self, scheme: Scheme, edges: Callable[[GraphModule], Iterable[Edge]], symmetric: Callable[[Edge], bool]
    ) -> None:
        super().__init__()
        self.scheme, self.edges, self.symmetric = scheme, edges, symmetric

    def annotate(self, model: GraphModule) -> GraphModule:
        inputs: dict[Node, dict[Node, object]] = {}
        first: dict[Node, Edge] = {}
        order = {node: place for place, node in enumerate(model.graph.nodes)}
        # torchao wants the edge whose scale others share to be the first of them in the graph
        for source, user in sorted(self.edges(model), key=lambda edge: order[edge[1]]):
            shares = first.get(_group(source, user, first))
            spec = SharedQuantizationSpec(shares) if shares else self._activation(source, user)
            first.setdefault(source, (source, user))
            inputs.setdefault(user, {})[source] = spec
        for node in weighted(model):
            inputs.setdefault(node, {})[operand(node, 1)] = self.scheme.weight()
        for node, specs in inputs.items():
            node.meta["quantization_annotation"] = annotation(specs)
        return model

    def validate(self, model: GraphModule) -> None: ...

    def _activation(self, source: Node, user: Node) -> QuantizationSpec:
        of_product = any(leads_to_product(reader) for reader in source.users)
        return self.scheme.activation(self.symmetric((source, user)), of_product=of_product)


def _group(source: Node, user: Node, first: dict[Node, Edge]) -> Node:
    """With which tensor an edge shares its scale: its own, or that of another input of one concatenation."""
    if user.target in CONCATENATIONS and source not in first:
        return next((n for n in concatenated(user) if n in first), source)
    return source


@dataclass(frozen=True)
class Scheme:
    """How activations and weights become int8.

    Attributes:
        reduce_range: 7 bits for weights, and for both factors of products of activations, so that the sum of two
            products fits 16 bits.
        histogram: whether observers keep what the schemes need that go by a histogram.
        revision: of the rules; see `optkit.quantize.static.REVISION`.
    """

    reduce_range: bool
    histogram: bool
    revision: int = 2

    def activation(self, symmetric: bool, *, of_product: bool = False) -> QuantizationSpec:
        """uint8 with one scale for the tensor; see `ActivationObserver` for what symmetric means."""
        observer = ActivationObserver.with_args(symmetric=symmetric, keep_histogram=self.histogram)
        highest = 127 if self.reduce_range and of_product else 255
        return QuantizationSpec(torch.uint8, observer, 0, highest, torch.per_tensor_affine)

    def weight(self, lowest: int = -127) -> QuantizationSpec:
        """int8 with a symmetric scale for each output channel."""
        return QuantizationSpec(
            dtype=torch.int8,
            quant_min=-63 if self.reduce_range else lowest,
            quant_max=63 if self.reduce_range else 127,
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
            observer_or_fake_quant_ctr=WeightObserver.with_args(),
        )


def leads_to_product(node: Node) -> bool:
    """Whether an operator is a product of two activations, or moves values that one reads."""
    return node.target in PRODUCTS or (
        node.target in LAYOUT | CONCATENATIONS and any(leads_to_product(user) for user in node.users)
    )
