"""Metrics of numbers: mean absolute error, root mean square error, and R2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from optkit.core.errors import UserError
from optkit.core.metric import ANY, ERROR, MetricOfSums
from optkit.core.ratios import quotient_or_zero
from optkit.core.statistics import Estimate
from optkit.core.task import Batch


@dataclass(frozen=True)
class _OfErrors(MetricOfSums):
    """What is computed from the differences of outputs ``(N, ...)`` and targets of the same shape.

    Attributes:
        unit: of the targets.
    """

    unit: str = "1"
    kind: ClassVar[str] = ERROR
    higher_is_better: ClassVar[bool] = False  # type: ignore[misc]

    def of_sums(self, sums: NDArray[np.float64], count: float) -> NDArray[np.float64]:
        return sums[..., 0] / count


class MeanAbsoluteError(_OfErrors):
    """The mean over examples of the mean absolute error of an example."""

    name = "mae"

    def observe(self, output: Tensor, batch: Batch) -> NDArray[np.float64]:
        """``(N, 1)``"""
        ours, targets = _numbers(output, batch)
        return np.abs(ours - targets).mean(1, keepdims=True)


class RootMeanSquareError(_OfErrors):
    """The root of the mean over examples of the mean square error of an example."""

    name = "rmse"

    def observe(self, output: Tensor, batch: Batch) -> NDArray[np.float64]:
        """``(N, 1)``"""
        ours, targets = _numbers(output, batch)
        return ((ours - targets) ** 2).mean(1, keepdims=True)

    def of_sums(self, sums: NDArray[np.float64], count: float) -> NDArray[np.float64]:
        return np.sqrt(np.maximum(sums[..., 0], 0) / count)


@dataclass(frozen=True)
class R2(MetricOfSums):
    """1 less the share of the targets' variance that the errors have; the mean over several targets.

    A target that never varies is left out.

    Attributes:
        targets: how many numbers an example has.
    """

    targets: int = 1
    name = "r2"
    kind: ClassVar[str] = ANY

    def observe(self, output: Tensor, batch: Batch) -> NDArray[np.float64]:
        """``(N, 3 * targets)``: squared errors, targets, and squared targets."""
        ours, targets = _numbers(output, batch)
        return np.concatenate([(ours - targets) ** 2, targets, targets**2], axis=1)

    def interval(self, table: NDArray[np.float64], pseudo: NDArray[np.float64] | None = None) -> Estimate:
        found = super().interval(table, pseudo)
        return Estimate(found.value, found.low, min(found.high, 1.0))

    def of_sums(self, sums: NDArray[np.float64], count: float) -> NDArray[np.float64]:
        errors, first, second = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, self.targets), -2, 0)
        spread = second - first**2 / count
        varies = spread > 1e-12 * np.maximum(second, 1e-300)
        left = quotient_or_zero(errors, np.where(varies, spread, 0.0))
        return quotient_or_zero(np.where(varies, 1 - left, 0.0).sum(-1), varies.sum(-1).astype(np.float64))


def _numbers(output: Tensor, batch: Batch) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Outputs and targets, ``(N, numbers)`` each.

    Raises:
        UserError: they differ in shape, by more than an axis of size 1.
    """
    n = len(batch)
    ours, targets = (x.double().cpu().numpy().reshape(n, -1) for x in (output, batch.targets))
    if ours.shape != targets.shape:
        message = f"the model gives {list(output.shape)} for targets {list(batch.targets.shape)}"
        raise UserError(message, key="task.metrics", fix="one number of the output for each of the target")
    return ours, targets
