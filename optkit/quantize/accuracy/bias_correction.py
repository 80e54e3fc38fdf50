"""Bias correction: what rounding shifts an output channel by on average is taken out of its bias."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from optkit.core.sharding import summed
from optkit.quantize.graph.annotate import CONVOLUTIONS, tensor_at
from optkit.quantize.graph.layers import Call, each_call


def correct_biases(graph: GraphModule, batches: Iterable[tuple[Tensor, ...]]) -> int:
    """Adds to every bias the mean of what a layer computes in float less what it computes in int8 (Nagel et al., 2019).

    Each layer is corrected for its own rounding, its input that of the float model, so one pass is enough.

    Args:
        graph: with observers, calibrated, whose scheme is the one that will be used; its biases change in place.
        batches: inputs; read once.

    Returns:
        How many biases were corrected; layers without one are left out.
    """
    shift: dict[str, Tensor] = {}
    seen: dict[str, Tensor] = {}

    def visit(call: Call) -> None:
        bias = call.rest[0] if call.rest else None
        if bias is None:
            return
        at = call.layer.node.args[2]
        if not isinstance(at, Node) or at.op != "get_attr":
            return
        axis = 1 if call.layer.node.target in CONVOLUTIONS else -1
        gap = (call.output - call.in_int8()).movedim(axis, 0).flatten(1)
        path = str(at.target)
        shift[path] = shift.get(path, 0) + gap.double().sum(1)
        seen[path] = seen.get(path, 0) + torch.tensor(gap.shape[1])

    each_call(graph, batches, visit)
    shift, seen = summed(shift), summed(seen)
    with torch.no_grad():
        for path, total in shift.items():
            tensor_at(graph, path).add_((total / seen[path]).float())
    return len(shift)
