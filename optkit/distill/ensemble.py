"""Several teachers as one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from optkit.core.errors import UserError


class Ensemble(nn.Module):
    """Several models as one: the mean of their outputs, which are one tensor each."""

    def __init__(self, members: list[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Logits ``(N, num_classes)``, or outputs of another kind ``(N, ...)``."""
        outputs = [member(*inputs) for member in self.members]
        if strange := [x for x in outputs if not isinstance(x, Tensor)]:
            message = f"a teacher gives a {type(strange[0]).__name__}, and the mean of several is of tensors"
            raise UserError(message, key="teacher", fix="one teacher")
        if len({x.shape for x in outputs}) > 1:
            shapes = ", ".join(str(list(x.shape)) for x in outputs)
            raise UserError(f"the teachers give {shapes}", key="teacher", fix="pick teachers of one task")
        return torch.stack(outputs).mean(0)
