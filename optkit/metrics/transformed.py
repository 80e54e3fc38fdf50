"""Metrics of what a function makes of outputs and targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optkit.core.metric import Metric
from optkit.core.statistics import Estimate, PairedDifference
from optkit.core.task import Batch


@dataclass(frozen=True)
class Transformed(Metric):
    """A metric of what a function makes of outputs and targets, such as numbers in their own unit.

    Attributes:
        metric: takes what the function gives.
        function: of the model's output and the targets of a batch; gives both anew.
    """

    metric: Metric
    function: Callable[[Any, Any], tuple[Any, Any]]

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.metric.name

    @property
    def unit(self) -> str:  # type: ignore[override]
        return self.metric.unit

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override]
        return self.metric.higher_is_better

    @property
    def kind(self) -> str:  # type: ignore[override]
        return self.metric.kind

    def observe(self, output: Any, batch: Batch) -> NDArray[np.float64]:
        output, targets = self.function(output, batch.targets)
        return self.metric.observe(output, replace(batch, targets=targets))

    def value(self, table: NDArray[np.float64]) -> float:
        return self.metric.value(table)

    def pseudo_values(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.metric.pseudo_values(table)

    def interval(self, table: NDArray[np.float64], pseudo: NDArray[np.float64] | None = None) -> Estimate:
        return self.metric.interval(table, pseudo)

    def difference(self, ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> PairedDifference:
        return self.metric.difference(ours, theirs)
