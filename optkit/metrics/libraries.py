"""Metrics of `evaluate` and of `torchmetrics`, with paired intervals over examples."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optkit.core.errors import UserError
from optkit.core.metric import ANY, MetricOfWeights
from optkit.core.task import Batch


@dataclass(frozen=True)
class _OfLibrary(MetricOfWeights):
    """Keeps outputs and targets of all examples, and asks the library for the metric of all, and without each group.

    Attributes:
        metric: the library's.
        name: in records and tables.
        unit: of the values; ``1`` for shares.
        higher_is_better: which way is up.
        classes: whether the output is logits whose largest is the prediction; otherwise the metric gets the output.
        key: of the metric's result, where it gives several; None: its only one.
    """

    metric: Any
    name: str
    unit: str = "1"
    higher_is_better: bool = True
    classes: bool = True
    key: str | None = None
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)
    kind: ClassVar[str] = ANY
    groups: ClassVar[int] = 60

    def observe(self, output: Tensor, batch: Batch) -> NDArray[np.float64]:
        """``(N, numbers)``: the prediction, and the target, of each example."""
        predicted = output.argmax(-1) if self.classes else output
        self.shapes.update(predicted=tuple(predicted.shape[1:]), target=tuple(batch.targets.shape[1:]))
        return np.concatenate([x.double().cpu().numpy().reshape(len(batch), -1) for x in (predicted, batch.targets)], 1)

    def weighted(self, table: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        width = int(np.prod(self.shapes["predicted"]))
        parts = (table[:, :width], "predicted"), (table[:, width:], "target")
        predicted, target = (x.reshape(-1, *self.shapes[name]) for x, name in parts)
        return np.array([self.compute(predicted[kept], target[kept]) for kept in weights > 0])

    @abstractmethod
    def compute(self, predicted: NDArray[np.float64], target: NDArray[np.float64]) -> float:
        """The library's metric of some examples."""


@dataclass(frozen=True)
class EvaluateMetric(_OfLibrary):
    """A metric of `evaluate`."""

    def compute(self, predicted: NDArray[np.float64], target: NDArray[np.float64]) -> float:
        if self.classes:
            predicted, target = predicted.astype(np.int64), target.astype(np.int64)
        return _one(self.metric.compute(predictions=predicted, references=target), self.key, self.name)


@dataclass(frozen=True)
class TorchMetric(_OfLibrary):
    """A metric of `torchmetrics`."""

    def compute(self, predicted: NDArray[np.float64], target: NDArray[np.float64]) -> float:
        self.metric.reset()
        given = (torch.from_numpy(x).to(torch.int64 if self.classes else torch.float32) for x in (predicted, target))
        self.metric.update(*given)
        return _one(self.metric.compute(), self.key, self.name)


def _one(found: Any, key: str | None, name: str) -> float:
    """The number in a library's result.

    Raises:
        UserError: there is more than one, or no number.
    """
    if isinstance(found, Mapping):
        if key is None and len(found) != 1:
            message = f"the metric '{name}' gives {', '.join(map(str, found))}"
            raise UserError(message, key="task.metrics", fix="name one of them: key=...")
        if key is not None and key not in found:
            raise UserError(
                f"the metric '{name}' gives no '{key}'", key="task.metrics", fix=f"one of {', '.join(found)}"
            )
        found = found[next(iter(found)) if key is None else key]
    numbers = np.asarray(found, dtype=np.float64)
    if numbers.size != 1:
        message = f"the metric '{name}' gives {numbers.size} numbers"
        raise UserError(message, key="task.metrics", fix="choose an average that gives one, such as macro")
    return float(numbers.item())
