"""A calibrated graph layer by layer: what each would compute in int8, beside what it computes in float."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from optkit.core.sharding import sharded, summed
from optkit.quantize.graph.annotate import (
    CONCATENATIONS,
    CONVOLUTIONS,
    LAYOUT,
    LINEAR,
    PRODUCTS,
    calls,
    concatenated,
    layer_path,
    operand,
    operands,
    tensor_at,
)
from optkit.quantize.graph.observers import ActivationObserver, WeightObserver


class Rounded(nn.Module):
    """Rounds as the quantize and dequantize nodes will that an observer becomes.

    Args:
        observer: calibrated.
    """

    def __init__(self, observer: Any):
        super().__init__()
        scale, zero_point = observer.calculate_qparams()
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point.int())
        self.per_channel = isinstance(observer, WeightObserver)
        self.integers = (observer.quant_min, observer.quant_max)

    scale: Tensor
    zero_point: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.per_channel:
            return torch.fake_quantize_per_channel_affine(x, self.scale, self.zero_point, 0, *self.integers)
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, *self.integers)


@dataclass(frozen=True)
class Layer:
    """A convolution, linear or product that will run in int8.

    Attributes:
        path: see `layer_path`.
        node: in the calibrated graph.
        observers: names of what observes its two operands.
    """

    path: str
    node: Node
    observers: tuple[str, str]


@dataclass(frozen=True)
class Call:
    """One call of a layer on one batch.

    Attributes:
        layer: which.
        operands: input and weight, or the two factors of a product, in float.
        rounded: the same as int8 represents them.
        rest: the other arguments.
        output: in float.
    """

    layer: Layer
    operands: tuple[Tensor, Tensor]
    rounded: tuple[Tensor, Tensor]
    rest: tuple[Any, ...]
    output: Tensor

    def in_int8(self) -> Tensor:
        """The output of the rounded operands."""
        return self.layer.node.target(*self.rounded, *self.rest)  # type: ignore[operator]


@dataclass(frozen=True)
class LayerError:
    """What int8 does to a layer on its own, its input as in the float model.

    Attributes:
        path: of the layer.
        sqnr_db: power of the output over that of the error, in dB.
    """

    path: str
    sqnr_db: float


def int8_layers(graph: GraphModule) -> list[Layer]:
    """The layers of a graph with observers both of whose operands are observed."""
    found = []
    for node in calls(graph, CONVOLUTIONS | LINEAR | PRODUCTS):
        first, second = (_observer_above(graph, read) for read in node.args[:2])
        if first and second:
            found.append(Layer(layer_path(node), node, (first, second)))
    return found


def each_call(graph: GraphModule, batches: Iterable[tuple[Tensor, ...]], visit: Callable[[Call], None]) -> None:
    """Runs a calibrated graph in float, and shows every call of a layer; of several processes each its share."""
    interpreter = _Calls(graph, visit)
    with torch.no_grad():
        for inputs in sharded(batches):
            interpreter.run(*inputs)


def layer_errors(graph: GraphModule, batches: Iterable[tuple[Tensor, ...]]) -> list[LayerError]:
    """The error of every layer on its own, the largest first."""
    power: dict[str, Tensor] = {}

    def visit(call: Call) -> None:
        signal, noise = (x.double().square().sum() for x in (call.output, call.in_int8() - call.output))
        power[call.layer.path] = power.get(call.layer.path, 0) + torch.stack([signal, noise])

    each_call(graph, batches, visit)
    found = [
        LayerError(path, 10 * math.log10(signal / noise) if signal and noise else math.inf)
        for path, (signal, noise) in ((path, sums.tolist()) for path, sums in summed(power).items())
    ]
    return sorted(found, key=lambda error: error.sqnr_db)


def simulated(graph: GraphModule, in_float: Iterable[str] = (), original: GraphModule | None = None) -> GraphModule:
    """A calibrated graph that computes what the int8 graph will, but for some layers.

    Args:
        graph: with observers; not touched.
        in_float: paths of layers that read what they read in the float model; values that an operator before them
            moves as int8 stay rounded.
        original: the same graph before tools changed its weights and biases, from which these layers have theirs; None
            where no tool did.
    """
    graph, in_float = copy.deepcopy(graph), set(in_float)
    for layer in int8_layers(graph):
        if layer.path in in_float:
            for read in operands(layer.node):
                if read.op == "call_module":
                    layer.node.replace_input_with(read, operand(read, 0))
            if original is not None:
                _restore(graph, layer.node, original)
    for name, module in list(graph.named_modules(remove_duplicate=False)):
        if _observes(module):
            graph.set_submodule(name, Rounded(module))
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def without_observers(graph: GraphModule) -> GraphModule:
    """A calibrated graph as it was in float, but for the norms that are folded; the graph itself is not touched."""
    graph = copy.deepcopy(graph)
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and _observes(graph.get_submodule(str(node.target))):
            node.replace_all_uses_with(operand(node, 0))
            graph.graph.erase_node(node)
    graph.recompile()
    return graph


class _Calls(Interpreter):
    """Runs a calibrated graph, its observers asleep."""

    def __init__(self, graph: GraphModule, visit: Callable[[Call], None]):
        super().__init__(graph)
        self.visit = visit
        self.layers = {layer.node: layer for layer in int8_layers(graph)}
        # a pool shares its observer with what it reads
        named = graph.named_modules(remove_duplicate=False)
        self.rounded = {name: Rounded(module) for name, module in named if _observes(module)}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args[0] if target in self.rounded else super().call_module(target, args, kwargs)

    def run_node(self, n: Node) -> Any:
        output = super().run_node(n)
        if (layer := self.layers.get(n)) is not None:
            (x, y, *rest), _ = self.fetch_args_kwargs_from_env(n)
            first, second = (self.rounded[name](value) for name, value in zip(layer.observers, (x, y), strict=True))
            self.visit(Call(layer, (x, y), (first, second), tuple(rest), output))
        return output


def _restore(graph: GraphModule, layer: Node, original: GraphModule) -> None:
    """Gives a layer the weight and bias that it has in another graph of the same names."""
    with torch.no_grad():
        for node in layer.all_input_nodes:
            if node.op == "get_attr":
                tensor_at(graph, str(node.target)).copy_(tensor_at(original, str(node.target)))


def _observes(module: nn.Module) -> bool:
    return isinstance(module, (ActivationObserver, WeightObserver))


def _observer_above(graph: GraphModule, node: object) -> str | None:
    """What observes an operand, above operators that only move values."""
    while isinstance(node, Node) and node.target in LAYOUT | CONCATENATIONS:
        node = concatenated(node)[0] if node.target in CONCATENATIONS else node.args[0]
    if isinstance(node, Node) and node.op == "call_module" and _observes(graph.get_submodule(str(node.target))):
        return str(node.target)
    return None
