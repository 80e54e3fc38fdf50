"""What torch's modules hold and do not tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from optkit.core.compat.versions import attribute, private

if TYPE_CHECKING:
    from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
else:
    _BatchNorm = private("torch.nn.modules.batchnorm._BatchNorm")
    _NormBase = private("torch.nn.modules.batchnorm._NormBase")

NormWithStatistics = _NormBase
"""The common base of batch norms and instance norms, of users' own kinds, too (torch 2.14)."""


class BatchNorm(_BatchNorm):
    """A batch norm of inputs ``(N, C, ...)`` of any number of dimensions (torch 2.14)."""

    def _check_input_dim(self, _: Tensor) -> None: ...


def compiled_from(module: nn.Module) -> nn.Module | None:
    """The module that ``torch.compile`` was given to make this one; None for any other module (torch 2.14)."""
    if type(module).__name__ != "OptimizedModule":
        return None
    found: nn.Module = attribute(module, "_orig_mod")
    return found


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether hooks run before or after a module's forward (torch 2.14)."""
    return bool(attribute(module, "_forward_hooks") or attribute(module, "_forward_pre_hooks"))
