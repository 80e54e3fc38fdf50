"""GPTQ: weights rounded so that a layer's output keeps its value, not each weight its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn.functional import unfold

from optkit.core.optimal_brain_surgeon import column_by_column, inverse_factor
from optkit.core.sharding import pooled
from optkit.quantize.graph.annotate import LINEAR, aten, behind_observer, operand, tensor_at
from optkit.quantize.graph.layers import Call, Layer, each_call, int8_layers
from optkit.quantize.graph.observers import EPS

DAMPING = 0.01  # of the mean of the Hessian's diagonal, added to it


def round_weights(graph: GraphModule, batches: Iterable[tuple[Tensor, ...]]) -> int:
    """Puts weights on their int8 grid by GPTQ (Frantar et al., 2023): the error of one is made up for by the others.

    Needs the second moments of every layer's inputs at once: ``inputs * taps`` squared floats for each group of each
    layer, whatever the number of batches.

    Args:
        graph: with observers, calibrated, whose scheme is the one that will be used; its weights change in place.
        batches: inputs; read once.

    Returns:
        How many weights were rounded: those of linear layers and of one- and two-dimensional convolutions.
    """
    moments = Moments()

    def weight_of(layer: Layer) -> Node:
        return behind_observer(operand(layer.node, 1))

    def visit(call: Call) -> None:
        weight = weight_of(call.layer)
        if weight.op == "get_attr" and (columns := _columns(call)) is not None:
            moments.add(str(weight.target), columns)

    each_call(graph, batches, visit)
    moments.put_together()
    observers = {str(weight_of(layer).target): layer.observers[1] for layer in int8_layers(graph)}
    with torch.no_grad():
        for path, moment in moments.found.items():
            weight, observer = tensor_at(graph, path), graph.get_submodule(observers[path])
            shape = (len(moment), len(weight) // len(moment), -1)
            scale = observer.calculate_qparams()[0].double().view(*shape[:2])  # type: ignore[operator]
            limits = (int(observer.quant_min), int(observer.quant_max))  # type: ignore[arg-type]
            nearest = partial(_nearest, scale=scale, limits=limits)
            weight.copy_(gptq(weight.reshape(shape), moment, nearest).reshape(weight.shape))
    return len(moments.found)


def gptq(
    weight: Tensor,
    moment: Tensor,
    nearest: Callable[[Tensor, int], Tensor],
    damping: float = DAMPING,
    activation_order: bool = False,
) -> Tensor:
    """Weights on their grid, column after column.

    Args:
        weight: ``(groups, outputs, inputs)``.
        moment: second moments of the inputs ``(groups, inputs, inputs)``.
        nearest: gives the points of the grid next to the values of a column ``(groups, outputs)``, float64, and the
            column's number.
        damping: share of the mean of the moments' diagonal that is added to it.
        activation_order: round the inputs with the largest second moments first; of one group only.
    """
    weight = weight.to(torch.float64, copy=True)
    order = list(range(weight.shape[2]))
    if activation_order:
        order = moment[0].diagonal().argsort(descending=True, stable=True).tolist()
        weight, moment = weight[:, :, order], moment[:, order][:, :, order]
    diagonal = moment.diagonal(dim1=1, dim2=2)
    dead = diagonal <= EPS * diagonal.mean(1, keepdim=True)
    factor = inverse_factor(moment, damping, dead)
    column_by_column(weight, factor, lambda columns, place, column: nearest(columns[:, place], order[column]))
    if activation_order:
        weight = weight[:, :, torch.tensor(order).argsort()]
    return weight.float()


class Moments:
    """Mean second moments ``(groups, inputs, inputs)`` by name, whatever comes in how many batches."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}
        self._rows: dict[str, int] = {}

    def add(self, name: str, columns: Tensor) -> None:
        """Takes in ``(groups, rows, inputs)``."""
        size, seen = columns.shape[1], self._rows.get(name, 0)
        moment = torch.bmm(columns.transpose(1, 2), columns) / size
        self.found[name] = self.found[name].lerp_(moment, size / (seen + size)) if seen else moment
        self._rows[name] = seen + size

    def put_together(self) -> None:
        """Makes them those of what all processes have taken in."""
        self.found = pooled(self.found, self._rows)


def _nearest(value: Tensor, _: int, scale: Tensor, limits: tuple[int, int]) -> Tensor:
    return (value / scale).round().clamp(*limits) * scale


def _columns(call: Call) -> Tensor | None:
    """What the weights of each output are multiplied with, ``(groups, rows, inputs * taps)``; None where unknown."""
    node, x = call.layer.node, call.rounded[0]
    if node.target in LINEAR:
        return x.reshape(1, -1, x.shape[-1])
    if node.target not in (aten.conv1d.default, aten.conv2d.default):
        return None
    given: list[Any] = [*call.rest, *(None, 1, 0, 1, 1)[len(call.rest) :]]
    _, stride, padding, dilation, groups = given
    kernel: tuple[int, ...] = tuple(call.operands[1].shape[2:])
    if node.target is aten.conv1d.default:
        x, kernel = x.unsqueeze(2), (1, *kernel)
        stride, padding, dilation = (1, *_many(stride)), (0, *_many(padding)), (1, *_many(dilation))
    columns = unfold(x, kernel, dilation=dilation, padding=padding, stride=stride)  # (N, inputs * taps, places)
    return columns.unflatten(1, (groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)


def _many(given: int | Iterable[int]) -> tuple[int, ...]:
    return (given,) if isinstance(given, int) else tuple(given)
