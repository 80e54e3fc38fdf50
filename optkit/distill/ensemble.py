"""Several teachers as one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from optkit.core.errors import UserError


class Ensemble(nn.Module):
    """Several models as one: the mean of their logits."""

    def __init__(self, members: list[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Logits ``(N, num_classes)``."""
        logits = [member(*inputs) for member in self.members]
        if len({x.shape for x in logits}) > 1:
            classes = ", ".join(str(x.shape[-1]) for x in logits)
            raise UserError(f"the teachers have {classes} classes", key="teacher", fix="pick teachers of one task")
        return torch.stack(logits).mean(0)
