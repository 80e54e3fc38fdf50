"""Models that wrap the one to be pruned: compiled, or spread over devices."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from optkit.core.compat.torch_modules import compiled_from
from optkit.core.errors import UserError


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside ``torch.compile``, ``nn.DataParallel`` and ``DistributedDataParallel``, or the model itself.

    Raises:
        UserError: a module inside the model is compiled: its operators are out of sight.
    """
    while (inner := _inner(model)) is not None:
        model = inner
    for name, module in model.named_modules():
        if compiled_from(module) is not None:
            fix = f"set {name} to {name}._orig_mod, or compile it after pruning"
            raise UserError(f"{name} is compiled, so its operators cannot be seen", key="model", fix=fix)
    return model


def _inner(model: nn.Module) -> nn.Module | None:
    if isinstance(model, (nn.DataParallel, DistributedDataParallel)):
        return model.module
    return compiled_from(model)
