"""What to measure: the fields of the config group ``measure``, checked without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from optkit.core.checks import check_count, is_number
from optkit.core.errors import UserError
from optkit.core.task import OfAnyLength, Task


@dataclass
class Measure:
    """What to measure, and how long; its fields are the config group ``measure``.

    Attributes:
        batch_sizes: each is compiled, evaluated and timed on its own.
        sequence_lengths: of texts, in tokens, to which they are padded and cut: each is compiled, evaluated and timed
            on its own; None is the task's.
        seconds: of timing for each variant and batch size, shared by all engines and the baseline; less where all
            ratios are precise sooner.
        precision: timing stops where each ratio to the baseline, on the reference and on the same engine, is known to
            it: half the width of the 95% interval over the ratio. 0.02 is 2%; None spends all the time.
        retries: how often a latency is timed again while other work disturbs the machine; then it is marked.
        memory: whether to open each variant in a fresh process, at the largest batch size, for its peak memory.
        split: what quality is measured on.
        p99_limit_ms: the report names, for each variant and engine, the largest of ``batch_sizes`` whose p99 latency
            stays within it; None names none.
    """

    batch_sizes: list[int] = field(default_factory=lambda: [1, 32])
    sequence_lengths: list[int] | None = None
    seconds: float = 5.0
    precision: float | None = 0.02
    retries: int = 1
    memory: bool = True
    split: str = "test"
    p99_limit_ms: float | None = None

    def __post_init__(self) -> None:
        if not _are_counts(self.batch_sizes):
            message = f"{self.batch_sizes} are not batch sizes of at least 1"
            raise UserError(message, key="batch_sizes", value=self.batch_sizes, fix="for example [1,32]")
        lengths = self.sequence_lengths
        if lengths is not None and not _are_counts(lengths):
            raise UserError(f"{lengths} are not lengths in tokens", key="sequence_lengths", fix="for example [64,128]")
        check_count("retries", self.retries, 0)
        if not is_number(self.seconds) or not 0 < self.seconds <= 3600:
            message = f"{self.seconds!r} is not a time in seconds"
            raise UserError(message, key="seconds", value=self.seconds, fix="above 0, up to 3600")
        if (share := self.precision) is not None and (not is_number(share) or not 0 < share < 1):
            message = f"{share!r} is not a share of a ratio"
            raise UserError(message, key="precision", value=share, fix="0.02 for 2%, or null for all the time there is")
        if (limit := self.p99_limit_ms) is not None and (not is_number(limit) or not 0 < limit < math.inf):
            raise UserError(f"{limit!r} is not a time in ms", key="p99_limit_ms", value=limit, fix="a number above 0")
        if self.split not in ("test", "validation"):
            raise UserError(f"'{self.split}' is not measured", key="split", value=self.split, fix="test or validation")


def _are_counts(values: object) -> bool:
    """Whether it is a list of whole numbers of at least 1."""
    return isinstance(values, list) and bool(values) and all(isinstance(n, int) and n >= 1 for n in values)


def tasks_to_measure(task: Task, config: Measure) -> list[Task]:
    """The task at each of the sequence lengths, shortest first; the task itself if none is named.

    Raises:
        UserError: lengths for examples that have none.
    """
    if config.sequence_lengths is None:
        return [task]
    if not isinstance(task, OfAnyLength):
        fix = "leave it out: measure.sequence_lengths=null"
        raise UserError("these examples have no length in tokens", key="measure.sequence_lengths", fix=fix)
    return [task.at_length(n) for n in sorted(config.sequence_lengths)]
