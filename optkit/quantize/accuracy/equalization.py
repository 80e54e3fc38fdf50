"""Equalization: the channels of an activation are brought to like ranges before it is rounded; outputs stay the same.

A channel is divided by a scale, and the layers that read it multiply their weights by it. The division is taken in by
the layer or norm that the channel comes from, or is a multiplication of its own in front of the readers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from optkit.core.sharding import largest, sharded
from optkit.quantize.graph.annotate import CONVOLUTIONS, LINEAR, aten, operand, tensor_at, weighted

NORMS = {aten.batch_norm.default, aten.layer_norm.default}
POOLS = {aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default}
# f(x * s) = f(x) * s for a scale s > 0 of every channel
ELEMENTWISE = {
    aten.relu.default, aten.relu_.default, aten.leaky_relu.default, aten.leaky_relu_.default, aten.dropout.default,
    aten.clone.default, aten.contiguous.default,
}  # fmt: skip
SWEEPS, STILL = 20, 0.01  # of cross-layer equalization: at most so many, until no scale moves by more


@dataclass
class Site:
    """An activation that convolutions and linears read.

    Attributes:
        source: gives the activation.
        readers: what reads it and takes the scales into its weights.
        sink: what takes the division into its weights; None for a multiplication in front of the readers.
        reach: largest magnitude of each channel over the calibration data ``(C,)``.
        scale: what the channels are divided by ``(C,)``.
    """

    source: Node
    readers: list[Node]
    sink: Node | None
    reach: Tensor = field(default_factory=lambda: torch.zeros(0))
    scale: Tensor = field(default_factory=lambda: torch.ones(()))

    @property
    def axis(self) -> int:
        """Of the activation's channels."""
        return 1 if self.readers[0].target in CONVOLUTIONS else -1


def equalize_layers(graph: GraphModule, batches: Iterable[tuple[Tensor, ...]]) -> int:
    """Cross-layer equalization (Nagel et al., 2019), in place, between layers that a ReLU, pooling or nothing parts.

    Weights have a scale for each output channel here, so what is brought into balance is the range of each channel of
    the activation, as measured, and that of the weights which read it; the paper takes the weights on both sides.

    Args:
        graph: an exported float graph, batch norms not folded.
        batches: inputs to measure ranges with; read once.

    Returns:
        How many activations were equalized.
    """
    sites = [site for site in _sites(graph) if site.sink is not None]
    if sites:
        _measure(graph, sites, batches)
    for _ in range(SWEEPS if sites else 0):
        moved = max(_balance(graph, site, 0.5) for site in sites)
        if moved < STILL:
            break
    return len(sites)


def smooth_inputs(graph: GraphModule, batches: Iterable[tuple[Tensor, ...]], alpha: float) -> tuple[int, list[str]]:
    """SmoothQuant (Xiao et al., 2023) for the inputs of linear layers, in place.

    A norm that only linears read takes the division in; anywhere else a multiplication is put in front of them.

    Args:
        graph: as for `equalize_layers`.
        batches: inputs to measure ranges with; read once.
        alpha: how much of the activation's range moves into the weights: 0 none, 1 all.

    Returns:
        How many activations were smoothed, and the names of those with a multiplication, for `multiply`.
    """
    sites = [site for site in _sites(graph) if all(reader.target in LINEAR for reader in site.readers)]
    if not sites:
        return 0, []
    _measure(graph, sites, batches)
    for site in sites:
        if site.sink is not None and site.sink.target not in NORMS:
            site.sink = None
        _balance(graph, site, alpha)
    apart = [site for site in sites if site.sink is None]
    for site, name in zip(apart, multiply(graph, [site.source.name for site in apart]), strict=True):
        getattr(graph, name).copy_(1 / site.scale)
    return len(sites), [site.source.name for site in apart]


def multiply(graph: GraphModule, sources: Sequence[str]) -> list[str]:
    """Puts a multiplication by a buffer ``(C,)`` of ones between activations and the linear layers that read them.

    Args:
        graph: as for `smooth`; changed in place.
        sources: names of the nodes that give the activations.

    Returns:
        The buffers' names.
    """
    nodes, scaled = {node.name: node for node in graph.graph.nodes}, set(weighted(graph))
    names = []
    for place, source in enumerate(nodes[name] for name in sources):
        # layers that stay in float keep their weights, and read what they read before
        readers = [user for user in source.users if user in scaled and user.args[0] is source]
        names.append(f"smoothing_{place}")
        graph.register_buffer(names[-1], torch.ones(source.meta["val"].shape[-1]))
        with graph.graph.inserting_after(source):
            factor = graph.graph.get_attr(names[-1])
        with graph.graph.inserting_after(factor):
            product = graph.graph.call_function(aten.mul.Tensor, (source, factor))
        factor.meta["val"] = getattr(graph, names[-1])
        # torchao takes the last node that stands in a GELU for the GELU, and the product is none
        named = source.target in LINEAR
        product.meta = {key: x for key, x in source.meta.items() if named or key != "nn_module_stack"}
        for reader in readers:
            reader.replace_input_with(source, product)
    graph.recompile()
    return names


def _sites(graph: GraphModule) -> list[Site]:
    """The activations whose readers among the layers can all take a scale, each once."""
    shared = _shared_attributes(graph)
    found: dict[Node, list[Node]] = {}
    for node in weighted(graph):
        found.setdefault(operand(node, 0), []).append(node)
    sites = []
    for source, readers in found.items():
        same_kind = len({reader.target in CONVOLUTIONS for reader in readers}) == 1
        if same_kind and all(operand(reader, 1).target not in shared for reader in readers):
            site = Site(source, readers, None)
            if set(source.users) == set(readers):
                site.sink = _sink(source, site.axis, shared)
            sites.append(site)
    return sites


def _shared_attributes(graph: GraphModule) -> set[str]:
    """Parameters, buffers and constants that more than one node reads, under whatever name."""
    read: dict[int, int] = {}
    names: dict[str, int] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            name = str(node.target)
            names[name] = id(tensor_at(graph, name))
            read[names[name]] = read.get(names[name], 0) + len(node.users)
    return {name for name, tensor in names.items() if read[tensor] > 1}


def _sink(source: Node, axis: int, shared: set[str]) -> Node | None:
    """The layer or norm that an activation comes from, if nothing but its readers would notice other scales."""
    node, axis = source, axis % source.meta["val"].dim()
    while True:
        if node.target in NORMS | CONVOLUTIONS | LINEAR:
            own = [x for x in _affine(node) if x is not None]
            weight = _affine(node)[0]
            if weight is None or any(x.op != "get_attr" or x.target in shared for x in own):
                return None
            last = node.target in LINEAR or node.target is aten.layer_norm.default
            if node.target is aten.layer_norm.default and len(_numbers(node, 1)) != 1:
                return None
            return node if axis == (node.meta["val"].dim() - 1 if last else 1) else None
        above = _above(node, axis)
        if above is None or len(above[0].users) > 1:
            return None
        node, axis = above


def _above(node: Node, axis: int) -> tuple[Node, int] | None:
    """What a node reads, and where the channels are there; None where scales do not pass."""
    source = node.args[0] if node.args and isinstance(node.args[0], Node) else None
    if source is None or not isinstance(source.meta.get("val"), Tensor):
        return None
    before, after = source.meta["val"], node.meta["val"]
    if node.target in ELEMENTWISE:
        return source, axis
    if node.target in POOLS:
        return (source, axis) if axis == after.dim() - 3 else None
    if node.target is aten.permute.default:
        return source, _numbers(node, 1)[axis] % before.dim()
    if node.target is aten.mean.dim:
        gone = {d % before.dim() for d in _numbers(node, 1)}
        kept = list(range(before.dim())) if len(node.args) > 2 and node.args[2] else None
        places = kept or [d for d in range(before.dim()) if d not in gone]
        return (source, places[axis]) if places[axis] not in gone else None
    if node.target in (aten.flatten.using_ints, aten.view.default, aten.reshape.default):
        flat = after.dim() == 2 and before.dim() > 2 and before.shape[1] == after.shape[1] and axis == 1
        return (source, 1) if flat else None
    return None


def _affine(node: Node) -> tuple[Any, Any]:
    """The weight and bias of a layer or norm."""
    first = 2 if node.target is aten.layer_norm.default else 1
    given = (*node.args[first : first + 2], None, None)
    return given[0], given[1]


class _Reaches(Interpreter):
    """Keeps the largest magnitude of every channel of the sites' activations."""

    def __init__(self, graph: GraphModule, sites: Sequence[Site]):
        super().__init__(graph)
        self.sites = {site.source: site for site in sites}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if (site := self.sites.get(n)) is not None:
            reach = value.movedim(site.axis, 0).flatten(1).abs().amax(1)
            site.reach = torch.maximum(site.reach, reach) if len(site.reach) else reach
        return value


@torch.no_grad()
def _measure(graph: GraphModule, sites: Sequence[Site], batches: Iterable[tuple[Tensor, ...]]) -> None:
    reaches = _Reaches(graph, sites)
    for inputs in sharded(batches):
        reaches.run(*inputs)
    for site in sites:
        site.reach = largest(site.reach)


@torch.no_grad()
def _balance(graph: GraphModule, site: Site, alpha: float) -> float:
    """Moves a site's scales, and says by how much at most, as the logarithm of a ratio."""
    weights = [tensor_at(graph, str(operand(reader, 1).target)) for reader in site.readers]
    groups = [_groups(reader) for reader in site.readers]
    read = [_of_inputs(w, g).abs().amax((1, 3)).flatten() for w, g in zip(weights, groups, strict=True)]
    of_weights = torch.stack(read).amax(0)
    scale = site.reach.pow(alpha) / of_weights.pow(1 - alpha)
    scale = torch.where((site.reach > 0) & (of_weights > 0), scale, 1.0)
    for weight, g in zip(weights, groups, strict=True):
        weight.copy_((_of_inputs(weight, g) * scale.view(g, 1, -1, 1)).reshape(weight.shape))
    if site.sink is not None:
        for parameter in (tensor_at(graph, x.target) for x in _affine(site.sink) if x is not None):
            parameter.div_(scale.view(-1, *[1] * (parameter.dim() - 1)))
    site.reach, site.scale = site.reach / scale, site.scale * scale
    return float(scale.log().abs().max())


def _groups(reader: Node) -> int:
    """Of a convolution; the last argument of every kind of it."""
    groups = reader.args[6] if reader.target in CONVOLUTIONS and len(reader.args) > 6 else 1
    assert isinstance(groups, int)
    return groups


def _numbers(node: Node, place: int) -> list[int]:
    """A list of dimensions or sizes among a call's arguments."""
    given = node.args[place]
    assert isinstance(given, (list, tuple))
    return [number for number in given if isinstance(number, int)]


def _of_inputs(weight: Tensor, groups: int) -> Tensor:
    """A weight as ``(groups, outputs / groups, inputs / groups, taps)``."""
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
