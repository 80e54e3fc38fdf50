"""Batch norms in eval mode, folded into the convolution or linear layer before them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from optkit.quantize.graph.annotate import CONVOLUTIONS, LINEAR, aten, calls, tensor_at

BATCH_NORM = aten.batch_norm.default
TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}


def fold_norms(graph: GraphModule) -> None:
    """Folds each batch norm that allows it, in place; see `foldable`.

    The layer's weight keeps its name. So does its bias, if no other node reads it; else the layer gets a bias of its
    own, ``WEIGHT_bias``.
    """
    for norm in calls(graph, {BATCH_NORM}):
        if foldable(norm):
            _fold(graph, norm)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def foldable(norm: Node) -> bool:
    """Whether a batch norm can become a part of the layer before it.

    It cannot if others read that layer too, or the layer's weight (the layer runs twice, or shares it), if it
    normalizes another dimension than the one of the layer's outputs, or with the statistics of the batch.
    """
    layer, *state = norm.args[:5]
    mean, variance, training = *state[2:], norm.args[5]
    if not isinstance(layer, Node) or layer.target not in CONVOLUTIONS | LINEAR | TRANSPOSED:
        return False
    weight, bias = _weight_and_bias(layer)
    if training or mean is None or variance is None:
        return False
    if not all(x is None or x.op == "get_attr" for x in (weight, bias, *state)):
        return False
    if len(layer.users) > 1 or len(weight.users) > 1:
        return False
    return bool(layer.meta["val"].dim() == weight.meta["val"].dim())


def folded(layer: Node, weight: Tensor, bias: Tensor | None, factor: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """The weight and bias of a layer whose outputs are multiplied and then shifted.

    Args:
        layer: a convolution, transposed convolution or linear.
        weight, bias: what it has.
        factor, shift: of its output channels ``(C,)``.
    """
    if layer.target in TRANSPOSED:  # (inputs, outputs / groups, ...): the outputs of a group stand together
        groups = int(layer.args[6]) if len(layer.args) > 6 else 1  # type: ignore[arg-type]
        by_group = weight.double().reshape(groups, -1, *weight.shape[1:])
        multiplied = by_group * factor.reshape(groups, 1, -1, *[1] * (weight.dim() - 2))
        multiplied = multiplied.reshape(weight.shape)
    else:
        multiplied = weight.double() * factor.reshape(-1, *[1] * (weight.dim() - 1))
    added = shift if bias is None else bias.double() * factor + shift
    return multiplied.to(weight.dtype), added.to(weight.dtype)


def factor_and_shift(
    mean: Tensor, variance: Tensor, eps: float, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What a batch norm in eval mode multiplies its channels by, and then adds to them ``(C,)``, float64."""
    factor = (variance.double() + eps).rsqrt()
    factor = factor if weight is None else factor * weight.double()
    shift = -mean.double() * factor
    return factor, shift if bias is None else shift + bias.double()


@torch.no_grad()
def _fold(graph: GraphModule, norm: Node) -> None:
    layer, *state = norm.args[:5]
    gamma, beta, mean, variance = (tensor_at(graph, str(x.target)) if isinstance(x, Node) else None for x in state)
    assert isinstance(layer, Node)
    assert mean is not None
    assert variance is not None
    weight, bias = _weight_and_bias(layer)
    own = None if bias is None else tensor_at(graph, bias.target)
    factor, shift = factor_and_shift(mean, variance, norm.args[7], gamma, beta)  # type: ignore[arg-type]
    new_weight, new_bias = folded(layer, tensor_at(graph, weight.target), own, factor, shift)
    set_parameter(graph, weight.target, new_weight)
    if bias is None or len(bias.users) > 1:
        name = f"{weight.target}_bias"
        set_parameter(graph, name, new_bias)
        with graph.graph.inserting_before(layer):
            bias = graph.graph.get_attr(name)
        bias.meta["val"] = new_bias.to("meta")
        layer.args = (layer.args[0], weight, bias, *layer.args[3:])
    else:
        set_parameter(graph, bias.target, new_bias)
    norm.replace_all_uses_with(layer)
    graph.graph.erase_node(norm)


def set_parameter(module: nn.Module, path: str, value: Tensor) -> None:
    """Puts a parameter at a path, in place of what is there."""
    owner, _, name = path.rpartition(".")
    setattr(module.get_submodule(owner), name, value if isinstance(value, nn.Parameter) else nn.Parameter(value))


def _weight_and_bias(layer: Node) -> tuple[Any, Any]:
    return layer.args[1], layer.args[2] if len(layer.args) > 2 else None
