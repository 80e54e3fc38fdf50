"""Metrics of several labels an example: F1 over labels, and mean average precision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from optkit.core.checks import check_choice
from optkit.core.metric import MetricOfSums, MetricOfWeights
from optkit.core.ratios import mean_of_quotients, quotient_or_zero
from optkit.core.task import Batch
from optkit.metrics.ranking import average_precision


@dataclass(frozen=True)
class MultilabelF1(MetricOfSums):
    """F1 over labels, each of which is there or not.

    Attributes:
        labels: how many there are.
        threshold: of the logit above which a label counts as found; 0 is a probability of one half.
        average: ``macro``: the mean over labels that are there or found; ``micro``: of all decisions together.
    """

    labels: int
    threshold: float = 0.0
    average: str = "macro"

    def __post_init__(self) -> None:
        check_choice("average", self.average, ("macro", "micro"))

    @property
    def name(self) -> str:  # type: ignore[override]
        return "multilabel_f1" if self.average == "macro" else "multilabel_micro_f1"

    def observe(self, output: Tensor, batch: Batch) -> NDArray[np.float64]:
        """``(N, 3 * labels)``: which labels are there, found, and both.

        Args:
            output: logits ``(N, labels)``.
            batch: targets ``(N, labels)`` of 0 and 1.
        """
        target = batch.targets.double().cpu().numpy()
        found = (output > self.threshold).double().cpu().numpy()
        return np.concatenate([target, found, target * found], axis=1)

    def of_sums(self, sums: NDArray[np.float64], count: float) -> NDArray[np.float64]:
        target, found, both = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, self.labels), -2, 0)
        if self.average == "micro":
            return quotient_or_zero(2 * both.sum(-1), (target + found).sum(-1))
        return mean_of_quotients(2 * both, target + found)


@dataclass(frozen=True)
class MultilabelMAP(MetricOfWeights):
    """Mean over labels of the average precision with which the logits rank the examples.

    A label that no example has is left out.

    Attributes:
        labels: how many there are.
    """

    labels: int
    name = "multilabel_map"

    def observe(self, output: Tensor, batch: Batch) -> NDArray[np.float64]:
        """``(N, 2 * labels)``: logits and targets."""
        return np.concatenate([output.double().cpu().numpy(), batch.targets.double().cpu().numpy()], axis=1)

    def weighted(self, table: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        scores, targets = table[:, : self.labels], table[:, self.labels :]
        found = [average_precision(scores[:, k], targets[:, k], weights) for k in range(self.labels)]
        values, there = (np.stack(part, axis=-1) for part in zip(*found, strict=True))
        return quotient_or_zero((values * there).sum(-1), there.sum(-1).astype(np.float64))
