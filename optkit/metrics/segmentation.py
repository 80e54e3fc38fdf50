"""Metrics of dense labels: mean intersection over union."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optkit.core.errors import UserError
from optkit.core.metric import MetricOfSums
from optkit.core.ratios import mean_of_quotients
from optkit.core.task import Batch


@dataclass(frozen=True)
class MeanIoU(MetricOfSums):
    """The mean over classes of intersection over union, of all pixels of a split (the definition of PASCAL VOC).

    A class that is neither in the targets nor predicted is left out.

    Attributes:
        classes: how many there are.
        ignore: a target that marks pixels to leave out; None: there are none.
    """

    classes: int
    ignore: int | None = 255
    name = "mean_iou"

    def observe(self, output: Tensor, batch: Batch) -> NDArray[np.float64]:
        """``(N, 3 * classes)``: pixels of each class in the target, in the prediction, and in both.

        Args:
            output: logits ``(N, classes, H, W)``.
            batch: targets ``(N, H, W)``.

        Raises:
            UserError: masks of another size than the model's output, or a class that there is not.
        """
        target, found = batch.targets.long(), output.argmax(1)
        if target.shape != found.shape:
            message = f"masks are {list(target.shape)}, and the model gives {list(found.shape)}"
            raise UserError(message, key="task.metrics", fix="resize the masks, or the output in the task's forward")
        seen = torch.ones_like(target, dtype=torch.bool) if self.ignore is None else target != self.ignore
        wrong = seen & ((target < 0) | (target >= self.classes))
        if bool(wrong.any()):
            message = f"a mask holds the class {int(target[wrong][0])}, and there are {self.classes}"
            raise UserError(message, key="task.metrics", fix="check the masks, or name the value to ignore")
        counts = [self._counts(x, seen) for x in (target, found, torch.where(target == found, target, -1))]
        return np.concatenate(counts, axis=1)

    def of_sums(self, sums: NDArray[np.float64], count: float) -> NDArray[np.float64]:
        target, found, both = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, self.classes), -2, 0)
        return mean_of_quotients(both, target + found - both)

    def _counts(self, classes: Tensor, seen: Tensor) -> NDArray[np.float64]:
        """Pixels of each class in each example, ``(N, classes)``."""
        n = len(classes)
        place = torch.where(seen & (classes >= 0), classes, self.classes)
        place = place + (self.classes + 1) * torch.arange(n, device=classes.device).view(n, *[1] * (classes.dim() - 1))
        found = torch.bincount(place.flatten(), minlength=n * (self.classes + 1)).view(n, -1)
        return found[:, : self.classes].double().cpu().numpy()
