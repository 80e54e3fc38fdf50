"""A loss of embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor


def supervised_contrastive_loss(outputs: Tensor, targets: Tensor, temperature: float = 0.1) -> Tensor:
    """Draws examples of one class together and those of others apart (Khosla et al., 2020, equation 2).

    Each example of a batch is asked against all others of it. One without another of its class in the batch adds
    nothing.

    Args:
        outputs: embeddings ``(N, dim)``; their lengths do not count.
        targets: classes ``(N,)``.
        temperature: of the softmax over cosines.
    """
    embedded = F.normalize(outputs.float().flatten(1), dim=1)
    itself = torch.eye(len(embedded), dtype=torch.bool, device=embedded.device)
    alike = (embedded @ embedded.T / temperature).masked_fill(itself, -torch.inf)
    share = alike.log_softmax(1).masked_fill(itself, 0)
    same = (targets[:, None] == targets) & ~itself
    of_each = -(share * same).sum(1) / same.sum(1).clamp(min=1)
    return of_each.sum() / same.any(1).sum().clamp(min=1)
