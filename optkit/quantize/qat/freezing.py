"""What is frozen in the middle of a quantization-aware training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import nn

from optkit.quantize.qat.fake_quant import MovingRange
from optkit.quantize.qat.graph import LiveNorm
from optkit.training import Callback

FREEZES: dict[str, type[LiveNorm] | type[MovingRange]] = {"norms": LiveNorm, "observers": MovingRange}


@dataclass
class Freezing(Callback):
    """Freezes batch-norm statistics and activation ranges for the rest of a training, so that weights settle on them.

    Attributes:
        norms, observers: after which share of the training; None: never.
        frozen: the step at which each was.
    """

    norms: float | None = 0.5
    observers: float | None = 0.5
    frozen: dict[str, int] = field(default_factory=dict, init=False)

    works_on_shards: ClassVar[bool] = True

    def on_train_begin(self, module: nn.Module) -> None:
        self._module, self.frozen = module, {}
        self._freeze(0, 1)

    def on_step_end(self, module: nn.Module, step: int, total: int) -> None:
        self._freeze(step, total)

    def _freeze(self, step: int, total: int) -> None:
        for what, kind in FREEZES.items():
            share = getattr(self, what)
            if share is None or what in self.frozen or step < share * total:
                continue
            found = [m for m in self._module.modules() if isinstance(m, kind)]
            for module in found:
                module.freeze()
            if found:
                self.frozen[what] = step

    def state_dict(self) -> dict[str, Any]:
        return {"frozen": self.frozen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.frozen = state["frozen"]
        for module in self._module.modules():
            if any(isinstance(module, FREEZES[what]) for what in self.frozen):
                module.freeze()  # type: ignore[operator]
