"""Which examples of a batch a process handles, and how many at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from optkit.core.processes import Processes
from optkit.core.task import Batch, ReadsParts, Task


class Part(NamedTuple):
    """Examples that a process handles at once.

    Attributes:
        batch: the examples.
        weight: which share of the whole batch they are; 0 where a process takes part in a pass with an example that
            another one counts.
    """

    batch: Batch
    weight: float


@dataclass(frozen=True)
class Shares:
    """The parts of batches that this process handles.

    Attributes:
        batch_size: examples a step, of all processes together.
        at_most: that a process handles at once; None for its whole share.
        processes: of the run.
    """

    batch_size: int
    at_most: int | None
    processes: Processes

    @property
    def accumulated(self) -> int:
        """How many passes a process makes for a step."""
        return self._passes(self.batch_size)

    @property
    def at_once(self) -> int:
        """Examples that a process handles at once, at most."""
        return math.ceil(math.ceil(self.batch_size / self.processes.size) / self.accumulated)

    @property
    def handled(self) -> int:
        """Examples that all processes handle at once."""
        return min(self.at_once * self.processes.size, self.batch_size)

    def least(self, count: int) -> int:
        """The fewest examples of a batch of so many that this process handles at once."""
        share = self.processes.share(count)
        return max((share.stop - share.start) // self._passes(count), 1)

    def of(self, mine: Batch, count: int) -> Iterator[Part]:
        """The parts of a batch, as many in all processes.

        Args:
            mine: what this process handles of it, see `read_shares`.
            count: examples of the whole batch.
        """
        passes = self._passes(count)
        if passes == 1 and not self.processes.several:
            yield Part(mine, 1.0)
            return
        share = self.processes.share(count)
        length = share.stop - share.start
        for number in range(passes):
            part = slice(number * length // passes, (number + 1) * length // passes)
            examples = part.stop - part.start
            yield Part(mine.subset(part if examples else slice(0, 1)), examples / count)

    def _passes(self, count: int) -> int:
        most = math.ceil(count / self.processes.size)
        return 1 if self.at_most is None else math.ceil(most / self.at_most)


def handled(processes: Processes, count: int) -> slice:
    """What a process handles of a batch of so many examples: its share, or one example that another process counts."""
    share = processes.share(count)
    return share if share.stop > share.start else slice(0, 1)


def read_shares(
    task: Task, processes: Processes, split: str, batch_size: int, *, training: bool = False, seed: int | None = None
) -> Iterator[tuple[Batch, int]]:
    """What this process handles of each batch of a split, and how many examples the whole batch has.

    What other processes handle is not read where the task can leave it out (`optkit.core.task.ReadsParts`).

    Args:
        task, split, batch_size, training, seed: of the batches, see `optkit.core.task.Task.batches`.
        processes: of the run.
    """
    part = partial(handled, processes)
    if processes.several and isinstance(task, ReadsParts):
        left = task.size(split)
        for mine in task.batch_parts(split, batch_size, part, training=training, seed=seed):
            yield mine, min(batch_size, left)
            left -= batch_size
        return
    for batch in task.batches(split, batch_size, training=training, seed=seed):
        yield batch.subset(part(len(batch))) if processes.several else batch, len(batch)
