"""Metrics of one's own: any function that scores each example."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from optkit.core.errors import UserError
from optkit.core.metric import ANY, MetricOfSums
from optkit.core.task import Batch


@dataclass(frozen=True)
class MeanScore(MetricOfSums):
    """The mean over examples of a function's scores.

    Attributes:
        function: takes the model's output and the targets of a batch, gives one number for each example ``(N,)``.
        name: in records and tables.
        unit: of the scores; ``1`` for shares.
        higher_is_better: which way is up.
    """

    function: Callable[[Any, Any], Any]
    name: str = "score"
    unit: str = "1"
    higher_is_better: bool = True
    kind: ClassVar[str] = ANY

    def observe(self, output: Any, batch: Batch) -> NDArray[np.float64]:
        """``(N, 1)``: the scores."""
        import torch

        scores = torch.as_tensor(self.function(output, batch.targets)).detach()
        if scores.is_complex() or scores.shape != (len(batch),):
            what = f"{list(scores.shape)}{' of complex numbers' if scores.is_complex() else ''}"
            message = f"the metric '{self.name}' gives {what} for a batch of {len(batch)} examples"
            raise UserError(message, key="task.metrics", fix="it must give one number for each example, (N,)")
        return scores.double().cpu().numpy()[:, None]

    def of_sums(self, sums: NDArray[np.float64], count: float) -> NDArray[np.float64]:
        return sums[..., 0] / count
