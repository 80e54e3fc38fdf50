"""The Metric contract: what is kept of every example, the value, its interval, and paired differences."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from optkit.core.errors import UserError, own_code
from optkit.core.influence import interval_of_any, interval_of_error, interval_of_share, paired_metric_difference
from optkit.core.statistics import Estimate, PairedDifference
from optkit.core.task import Batch

TAKES = "it takes the model's output and the targets of a batch"
SHARE, ERROR, ANY = "share", "error", "any"  # between 0 and 1; 0 and above; any number
_INTERVALS: dict[str, Callable[[float, NDArray[np.float64]], Estimate]] = {
    SHARE: interval_of_share, ERROR: interval_of_error, ANY: interval_of_any,
}  # fmt: skip


class Metric(ABC):
    """A figure of quality over the examples of a split.

    What `observe` keeps of a batch is a table ``(N, k)`` of floats, one row an example. `value` needs nothing else, so
    that records hold the tables, and every interval and difference can be computed from a record.

    Attributes:
        name: in records and tables.
        unit: ``1`` for shares, which are shown in percent; otherwise the unit of the targets.
        higher_is_better: which way is up.
        kind: what values there are: `SHARE`, `ERROR` or `ANY`; it chooses the interval.
    """

    name: str
    unit: str = "1"
    higher_is_better: bool = True
    kind: ClassVar[str] = SHARE

    @abstractmethod
    def observe(self, output: Any, batch: Batch) -> NDArray[np.float64]:
        """What is kept of the examples of a batch, ``(N, k)``.

        Args:
            output: what the model gives for the batch.
            batch: with its targets.
        """

    @abstractmethod
    def value(self, table: NDArray[np.float64]) -> float:
        """The metric over all examples of a table ``(N, k)``."""

    @abstractmethod
    def pseudo_values(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        """Jackknife pseudo-values ``(N,)``: one an example, see `optkit.core.influence`."""

    def interval(self, table: NDArray[np.float64], pseudo: NDArray[np.float64] | None = None) -> Estimate:
        """The metric with its 95% interval over examples.

        Args:
            table: ``(N, k)``.
            pseudo: its pseudo-values, where they are known already.
        """
        return _INTERVALS[self.kind](self.value(table), self.pseudo_values(table) if pseudo is None else pseudo)

    def difference(self, ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> PairedDifference:
        """How the metric of a candidate differs from a reference's, paired by example.

        Args:
            ours: the candidate's table ``(N, k)``.
            theirs: the reference's, of the same examples in the same order.
        """
        delta = self.value(ours) - self.value(theirs)
        return paired_metric_difference(delta, self.pseudo_values(ours), self.pseudo_values(theirs))


class MetricOfSums(Metric):
    """A metric that is a function of the table's column sums: accuracy, F1, IoU, mean errors, R2."""

    @abstractmethod
    def of_sums(self, sums: NDArray[np.float64], count: float) -> NDArray[np.float64]:
        """The metric of column sums.

        Args:
            sums: ``(..., k)``.
            count: how many examples they are of.

        Returns:
            ``(...)``
        """

    def value(self, table: NDArray[np.float64]) -> float:
        return float(self.of_sums(table.sum(0), len(table)))

    def pseudo_values(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        n, sums = len(table), table.sum(0)
        without = self.of_sums(sums - table, n - 1)
        return n * self.of_sums(sums, n) - (n - 1) * without


class MetricOfWeights(Metric):
    """A metric that is no function of sums but can weigh examples: mean average precision, any function of all outputs.

    Its pseudo-values are of groups of examples, which one deletion leaves out together (the delete-a-group jackknife,
    Kott, Journal of Official Statistics, 2001), so that the cost does not grow with the square of the examples.
    """

    groups: ClassVar[int] = 400

    @abstractmethod
    def weighted(self, table: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """The metric under several weightings of the examples.

        Args:
            table: ``(N, k)``.
            weights: ``(draws, N)``; 0 leaves an example out.

        Returns:
            ``(draws,)``
        """

    def value(self, table: NDArray[np.float64]) -> float:
        return float(self.weighted(table, np.ones((1, len(table))))[0])

    def pseudo_values(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        """``(groups,)``, or ``(N,)`` of fewer examples. Groups are drawn at random, the same of every table."""
        count = min(self.groups, len(table))
        group = np.random.default_rng(0).permutation(len(table)) % count
        whole, without = self.value(table), np.empty(count)
        step = max(1, 4_000_000 // len(table))
        for start in range(0, count, step):
            left_out = np.arange(start, min(start + step, count))
            without[left_out] = self.weighted(table, (group != left_out[:, None]).astype(np.float64))
        return count * whole - (count - 1) * without


def check_table(table: NDArray[np.float64], batch: Batch, name: str) -> NDArray[np.float64]:
    """A batch's table, if it has a row an example and no NaN.

    Raises:
        UserError: it has not; the message names the metric.
    """
    if table.ndim != 2 or len(table) != len(batch):
        message = f"the metric '{name}' gives {list(table.shape)} for a batch of {len(batch)} examples"
        raise UserError(message, key="task.metrics", fix="it must give one row, or one number, for each example")
    if not np.isfinite(table).all():
        place = int(np.flatnonzero(~np.isfinite(table).all(1))[0])
        message = f"the metric '{name}' is not finite for example {int(batch.index[place])}"
        raise UserError(message, key="task.metrics", fix="check the model's output and the target of this example")
    return table


def observed(metric: Metric, output: Any, batch: Batch) -> NDArray[np.float64]:
    """What a metric keeps of a batch, ``(N, k)``; raises UserError as `check_table`, and where the metric fails."""
    with own_code(f"the metric '{metric.name}' fails", "task.metrics", TAKES):
        table = np.asarray(metric.observe(output, batch), dtype=np.float64)
    return check_table(table, batch, metric.name)


def stacked(tables: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The tables of all batches of a split, as one ``(N, k)``."""
    return np.concatenate(tables)
