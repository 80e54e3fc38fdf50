"""Which part of a model a group of units is: attention heads, the width inside a block, or the residual stream."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optkit.prune.cut.units import Units
from optkit.prune.options import FEED_FORWARD, HEADS, RESIDUAL
from optkit.prune.trace.values import Trace


def parts_of(units: Units, trace: Trace, blocks: Sequence[str]) -> list[str]:
    """The part that each group belongs to.

    Args:
        units: what can be cut.
        trace: where they were found.
        blocks: paths of the model's residual blocks. Units in the weights of several of them are of the stream between.
    """
    in_blocks: list[set[str]] = [set() for _ in units.names]
    for slot in units.slots:
        block = next((path for path in blocks if slot.param.startswith(f"{path}.")), None)
        if block is not None:
            for group in np.unique(units.group[slot.units[slot.units >= 0]]):
                in_blocks[group].add(block)
    attended = np.concatenate([np.zeros(0, np.int64), *(units.of(axis) for axis in trace.attended)])
    heads = set(units.group[attended[attended >= 0]].tolist())
    return [
        RESIDUAL if len(held) > 1 else HEADS if group in heads else FEED_FORWARD for group, held in enumerate(in_blocks)
    ]
