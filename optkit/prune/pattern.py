"""N:M patterns of zeros."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optkit.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Pattern:
    """N:M sparsity: of every ``group`` weights in a row along the input dimension, ``kept`` are not zero.

    2:4 is what the sparse tensor cores of NVIDIA GPUs multiply (Mishra et al., "Accelerating Sparse Deep Neural
    Networks", 2021).
    """

    kept: int
    group: int

    @classmethod
    def parse(cls, text: object) -> Pattern:
        """The pattern that ``"2:4"`` names. Raises UserError for anything that names none."""
        match = re.fullmatch(r"(\d+):(\d+)", text) if isinstance(text, str) else None
        if match is None or not 0 < int(match[1]) < int(match[2]):
            fix = "'2:4' keeps 2 of every 4 weights; YAML wants it in quotes"
            raise UserError(f"{text!r} is not a pattern", key="pattern", value=text, fix=fix)
        return cls(int(match[1]), int(match[2]))

    @property
    def removed(self) -> float:
        """The share of the weights that is zero."""
        return 1 - self.kept / self.group

    def keep(self, weight: Tensor, dim: int) -> Tensor:
        """True for the ``kept`` largest magnitudes of each group along ``dim``, which the group divides."""
        groups = weight.abs().movedim(dim, -1).unflatten(-1, (-1, self.group))
        return keep_largest(groups, self.group - self.kept).flatten(-2).movedim(-1, dim)


def keep_largest(scores: Tensor, removed: int) -> Tensor:
    """False for the ``removed`` smallest along the last dimension; among equals the first go first."""
    import torch

    order = scores.argsort(dim=-1, stable=True)
    return torch.ones_like(scores, dtype=torch.bool).scatter(-1, order[..., :removed], False)
