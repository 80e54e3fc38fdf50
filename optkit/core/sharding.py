"""Batches shared out to the processes of a run, and what they find in them put together.

All processes call these functions in the same order (`optkit.core.processes`). In one process they change nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from optkit.core.processes import current

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


def sharded(batches: Iterable[T]) -> Iterator[T]:
    """The batches of this process: one in so many as there are processes."""
    processes = current()
    return islice(batches, processes.rank, None, processes.size)


def summed(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sums over all processes, in place.

    Args:
        found: tensors by name, of the same shape and type in all processes. One without a batch may lack some.
    """
    import torch

    processes = current()
    if not processes.several:
        return dict(found)
    forms: dict[str, Any] = {}
    for of_one in processes.gather({name: [list(x.shape), str(x.dtype), x.device.type] for name, x in found.items()}):
        forms |= of_one
    whole: dict[str, Tensor] = {}
    for name, (shape, kind, device) in forms.items():
        dtype = getattr(torch, kind.removeprefix("torch."))
        mine = found[name] if name in found else torch.zeros(shape, dtype=dtype, device=device)
        wide = mine if dtype.is_floating_point else mine.long()  # gloo adds no integers of 16 bits
        whole[name] = processes.sum(wide).to(dtype)
    return whole


def pooled(means: Mapping[str, Tensor], rows: Mapping[str, int]) -> dict[str, Tensor]:
    """The means over what all processes have seen, from the means of each.

    Args:
        means: by name, as for `summed`.
        rows: how many rows each is the mean of.
    """
    import torch

    if not current().several:
        return dict(means)
    counts = summed({name: torch.tensor(rows[name]) for name in means})
    sums = summed({name: mean * rows[name] for name, mean in means.items()})
    return {name: total.div_(counts[name]) for name, total in sums.items()}


def largest(found: Tensor) -> Tensor:
    """The largest of each value over the processes; that of one without a batch is empty."""
    import torch

    processes = current()
    if not processes.several:
        return found
    return torch.from_numpy(np.max([x for x in processes.gather_arrays(found.numpy()) if x.size], axis=0))


def in_order(
    rows: Sequence[NDArray[Any]], places: Sequence[NDArray[np.int64]]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The rows of all processes and their places, sorted by these.

    Args:
        rows: of each batch, ``(N, ...)``.
        places: of the rows among those of all batches, ``(N,)`` each.
    """
    mine, here = (np.concatenate(rows), np.concatenate(places)) if rows else (np.zeros((0, 1)), np.zeros(0, np.int64))
    of_all = np.concatenate([found for found in current().gather_arrays(mine) if len(found)])
    where = np.concatenate(current().gather_arrays(here))
    order = np.argsort(where, kind="stable")
    return of_all[order], where[order]
