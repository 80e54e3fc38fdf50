"""A model of the memory traffic of a network, for the roofline."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from optkit.core.compat.torch_tracing import TorchDispatchMode
from optkit.core.macs import macs_by_operator
from optkit.core.records import Measurement


def count_traffic(module: nn.Module, examples: tuple[tuple[Tensor, ...], tuple[Tensor, ...]]) -> tuple[int, int]:
    """Numbers that the operators with MACs read and write: for each example, and for weights once a batch.

    A model, not a measurement: each such operator reads its inputs and writes its output once, what stands between them
    is fused, and nothing stays in a cache from one to the next.

    Args:
        module: any module.
        examples: inputs of two batch sizes, the smaller first.

    Returns:
        Numbers an example, and numbers a batch.
    """
    counted = []
    for example in examples:
        with torch.no_grad(), _Counter(module, example) as counter:
            module(*example)
        counted.append(counter.numbers)
    small, large = (len(example[0]) for example in examples)
    each = (counted[1] - counted[0]) // (large - small)
    return each, max(counted[0] - small * each, 0)


def measure_traffic(module: nn.Module, example: tuple[Tensor, ...], conditions: dict[str, Any]) -> list[Measurement]:
    """`count_traffic` as measurements; ``example`` is of two examples or more."""
    each, once = count_traffic(module, (example, tuple(torch.cat([x, x]) for x in example)))
    name = "numbers_moved_modelled"
    return [
        Measurement(name, each, conditions=conditions | {"per": "example"}),
        Measurement(name, once, conditions=conditions | {"per": "batch"}),
    ]


class _Counter(TorchDispatchMode):
    def __init__(self, module: nn.Module, example: tuple[Tensor, ...]):
        super().__init__()
        self.numbers = 0
        self.counted = set(macs_by_operator(module, example))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = getattr(func, "overloadpacket", None)
        if packet in flop_registry or str(packet) in self.counted:
            results = out if isinstance(out, (tuple, list)) else (out,)
            self.numbers += sum(x.numel() for x in (*args, *results[:1]) if isinstance(x, Tensor))
        return out
