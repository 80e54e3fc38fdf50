"""Metrics of embeddings: recall among the nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from optkit.core.metric import Metric
from optkit.core.ratios import quotient_or_zero
from optkit.core.task import Batch


@dataclass(frozen=True)
class RecallAtK(Metric):
    """The share of examples with another example of their class among the k nearest by cosine.

    Every example is asked against all others of the split, as in the literature on metric learning (Jegou et al., 2011;
    Oh Song et al., CVPR 2016).

    Attributes:
        k: neighbours that are looked at.
    """

    k: int = 1

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"recall_at_{self.k}"

    def observe(self, output: Tensor, batch: Batch) -> NDArray[np.float64]:
        """``(N, 1 + size)``: the class, and the embedding at length 1.

        Args:
            output: embeddings ``(N, size)``.
            batch: classes ``(N,)``.
        """
        embedded = F.normalize(output.double().flatten(1), dim=1).cpu().numpy()
        return np.concatenate([batch.targets.double().cpu().numpy()[:, None], embedded], axis=1)

    def found(self, table: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which examples have one of their class among their neighbours, ``(N,)``."""
        classes, embedded = table[:, 0], table[:, 1:]
        right = np.empty(len(table), bool)
        for start in range(0, len(table), 1024):
            rows = np.arange(start, min(start + 1024, len(table)))
            alike = embedded[rows] @ embedded.T
            alike[np.arange(len(rows)), rows] = -np.inf  # never its own neighbour
            k = min(self.k, len(table) - 1)
            nearest = np.argpartition(-alike, k - 1, axis=1)[:, :k]
            right[rows] = (classes[nearest] == classes[rows, None]).any(1)
        return right

    def value(self, table: NDArray[np.float64]) -> float:
        return float(self.found(table).mean())

    def pseudo_values(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        """One a class, ``(classes,)``: examples of one class find each other, so they are no independent trials."""
        _, place, sizes = np.unique(table[:, 0], return_inverse=True, return_counts=True)
        right = np.bincount(place, self.found(table))
        without = quotient_or_zero(right.sum() - right, (len(table) - sizes).astype(np.float64))
        count = len(sizes)
        return count * right.sum() / len(table) - (count - 1) * without
