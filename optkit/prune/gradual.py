"""Gradual pruning: masks that grow while the model trains, on any objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from optkit.prune.masks import Masks, apply_masks_
from optkit.training import Callback


def cubic_sparsity(step: int, begin: int, end: int, final: float, initial: float = 0.0) -> float:
    """The share of zeros after a training step.

    Zhu and Gupta, "To prune, or not to prune" (2017): ``s_f + (s_i - s_f) * (1 - (t - t_0) / (n * dt))**3``, fast at
    first, while weights are plenty, and slow near the end.

    Args:
        step: t, any training step.
        begin: t_0; up to it the share is ``initial``.
        end: t_0 + n * dt; from it on the share is ``final``.
        final: s_f.
        initial: s_i.
    """
    if step >= end:
        return final
    progress = max(0, step - begin) / (end - begin)
    return final + (initial - final) * (1 - progress) ** 3


@dataclass
class GradualMasks(Callback):
    """Masks more and more weights during a training, and keeps what is masked at zero.

    A masked weight is zero and so among the smallest: it stays masked.

    Attributes:
        masks: ``masks(module, share)``, such as a partial `magnitude_masks`.
        final: share of zeros in the end.
        initial: share of zeros at ``begin``.
        begin, end: when the share begins to grow and when it is reached, as shares of the training.
        every: steps between two growths.
    """

    masks: Callable[[nn.Module, float], Masks]
    final: float
    initial: float = 0.0
    begin: float = 0.0
    end: float = 0.75
    every: int = 20
    current: Masks = field(default_factory=dict, init=False)

    def on_step_end(self, module: nn.Module, step: int, total: int) -> None:
        begin = max(1, round(self.begin * total))
        end = max(begin, round(self.end * total))
        if step == end or (begin <= step < end and (step - begin) % self.every == 0):
            self.current = self.masks(module, cubic_sparsity(step, begin, end, self.final, self.initial))
        apply_masks_(module, self.current)

    def state_dict(self) -> dict[str, Any]:
        return {"masks": self.current}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.current = state["masks"]
