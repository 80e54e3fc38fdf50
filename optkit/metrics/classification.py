"""Metrics of one label an example: accuracy, top-k, balanced accuracy, macro F1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from optkit.core.errors import UserError
from optkit.core.metric import MetricOfSums
from optkit.core.ratios import mean_of_quotients
from optkit.core.statistics import Estimate, PairedDifference, paired_difference, proportion
from optkit.core.task import Batch

if TYPE_CHECKING:
    from torch import Tensor


def labels_of(batch: Batch, metric: str) -> Tensor:
    """The class numbers ``(N,)`` of a batch; raises UserError if its targets are something else."""
    targets = batch.targets
    if getattr(targets, "ndim", 0) != 1 or targets.is_floating_point():
        shape = f"{list(targets.shape)} of {targets.dtype}" if hasattr(targets, "dtype") else type(targets).__name__
        message = f"the metric '{metric}' is for class numbers (N,), and the targets are {shape}"
        raise UserError(message, key="task.metrics", fix="name a metric for such targets")
    return targets


@dataclass(frozen=True)
class Accuracy(MetricOfSums):
    """The share of examples whose largest logit is the label's. Interval: Wilson's. Difference: exact McNemar test.

    Attributes:
        top: an example is right if its label is among so many largest logits.
    """

    top: int = 1

    @property
    def name(self) -> str:  # type: ignore[override]
        return "accuracy" if self.top == 1 else f"top{self.top}_accuracy"

    def observe(self, output: Tensor, batch: Batch) -> NDArray[np.float64]:
        """``(N, 1)``: 1 where it is right.

        Args:
            output: logits ``(N, classes)``.
            batch: targets ``(N,)``.
        """
        if self.top == 1:
            right = output.argmax(-1) == labels_of(batch, self.name)
        else:
            right = (
                output.topk(min(self.top, output.shape[-1]), -1).indices == labels_of(batch, self.name)[:, None]
            ).any(-1)
        return right.double().cpu().numpy()[:, None]

    def of_sums(self, sums: NDArray[np.float64], count: float) -> NDArray[np.float64]:
        return sums[..., 0] / count

    def pseudo_values(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        return table[:, 0]

    def interval(self, table: NDArray[np.float64], pseudo: NDArray[np.float64] | None = None) -> Estimate:
        return proportion(int(table.sum()), len(table))

    def difference(self, ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> PairedDifference:
        return paired_difference(ours[:, 0] > 0, theirs[:, 0] > 0)


@dataclass(frozen=True)
class _OfClasses(MetricOfSums):
    """What is counted for every class: its examples, those predicted as it, and those of both."""

    def observe(self, output: Tensor, batch: Batch) -> NDArray[np.float64]:
        """``(N, 3 * classes)``: one-hot targets, predictions, and both.

        Args:
            output: logits ``(N, classes)``.
            batch: targets ``(N,)``.
        """
        eye = np.eye(output.shape[-1])
        target, found = eye[labels_of(batch, self.name).cpu().numpy()], eye[output.argmax(-1).cpu().numpy()]
        return np.concatenate([target, found, target * found], axis=1)

    def _counts(self, sums: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        return tuple(np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0))


class BalancedAccuracy(_OfClasses):
    """The mean over classes of the share of a class's examples that are right. A class without examples is left out."""

    name = "balanced_accuracy"

    def of_sums(self, sums: NDArray[np.float64], count: float) -> NDArray[np.float64]:
        target, _, both = self._counts(sums)
        return mean_of_quotients(both, target)


class MacroF1(_OfClasses):
    """The mean over classes of F1. A class that is neither in the targets nor predicted is left out."""

    name = "macro_f1"

    def of_sums(self, sums: NDArray[np.float64], count: float) -> NDArray[np.float64]:
        target, found, both = self._counts(sums)
        return mean_of_quotients(2 * both, target + found)
