"""What happens around training steps."""

from __future__ import annotations

import torch
from torch import nn


class Callback:
    """Called by the loop with the bare module; the defaults do nothing."""

    def on_train_begin(self, module: nn.Module) -> None: ...

    def on_step_end(self, module: nn.Module, step: int, total: int) -> None: ...

    def on_epoch_end(self, module: nn.Module, epoch: int) -> None: ...

    def on_train_end(self, module: nn.Module) -> None: ...


class KeepZeros(Callback):
    """Keeps a pruned model's zeros at zero: after every step, what was zero at the start is zero again."""

    def on_train_begin(self, module: nn.Module) -> None:
        self._kept = {n: p != 0 for n, p in module.named_parameters() if p.dim() > 1 and (p == 0).any()}

    def on_step_end(self, module: nn.Module, step: int, total: int) -> None:
        parameters = dict(module.named_parameters())
        with torch.no_grad():
            for name, kept in self._kept.items():
                parameters[name].mul_(kept)
