"""What happens around training steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import nn


class Callback:
    """Called by the loop with the bare module; the defaults do nothing.

    `on_train_begin` is called in every process that works on a training, before the state of an interrupted one is
    loaded: what must survive a kill goes through `state_dict` and `load_state_dict`. In a run of several processes each
    has its own; they see the same steps of the same weights.

    Attributes:
        works_on_shards: whether it works where a process holds a part of every parameter (``sharding: fsdp``): it
            looks at no parameter.
    """

    works_on_shards: ClassVar[bool] = False

    def on_train_begin(self, module: nn.Module) -> None: ...

    def on_step_end(self, module: nn.Module, step: int, total: int) -> None: ...

    def on_epoch_end(self, module: nn.Module, epoch: int) -> None: ...

    def on_train_end(self, module: nn.Module) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, saved with the training's state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave; called when an interrupted training goes on."""


class KeepZeros(Callback):
    """Keeps a pruned model's zeros at zero: after every step, what was zero at the start is zero again."""

    def on_train_begin(self, module: nn.Module) -> None:
        self._kept = {n: p != 0 for n, p in module.named_parameters() if p.dim() > 1 and (p == 0).any()}

    def on_step_end(self, module: nn.Module, step: int, total: int) -> None:
        import torch

        parameters = dict(module.named_parameters())
        with torch.no_grad():
            for name, kept in self._kept.items():
                parameters[name].mul_(kept)
