"""Bridges between a student's features and a teacher's: projections that are trained and dropped, and pooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optkit.core.errors import UserError


class Bridge(nn.Module):
    """Brings a student's feature to a teacher's width, and both to the smaller of their sizes.

    Vectors ``(N, C)`` and tokens ``(N, L, C)`` go through a linear projection, maps ``(N, C, H, W)`` through a 1x1
    convolution, as the regressors of FitNets (Romero et al., 2015); where the widths are equal there is none. Maps with
    their channels last are told by their square sides.

    Args:
        student, teacher: examples of both.
        widths: whether the loss compares channel by channel; else there is no projection.
        where: names the pair in errors.

    Raises:
        UserError: no projection leads from one to the other.
    """

    def __init__(self, student: Tensor, teacher: Tensor, widths: bool, where: str):
        super().__init__()
        shapes = f"{list(student.shape)} and {list(teacher.shape)}"
        if student.dim() != teacher.dim() or student.dim() not in (2, 3, 4):
            fix = "pair layers with features of one kind: vectors, tokens, or maps"
            raise UserError(f"{where}: no projection leads from one of {shapes} to the other", key="pairs", fix=fix)
        if student.dim() == 3 and student.shape[1] != teacher.shape[1]:
            fix = "a student and a teacher of the same patches or tokens"
            raise UserError(f"{where}: {shapes} are of different numbers of tokens", key="pairs", fix=fix)
        self.lasts = [is_channels_last(x) for x in (student, teacher)]
        student, teacher = self._channels_first(student, teacher)
        self.size = tuple(min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True))
        at = 1 if student.dim() == 4 else -1
        ours, theirs = student.shape[at], teacher.shape[at]
        self.project: nn.Module = nn.Identity()
        if widths and ours != theirs:
            self.project = nn.Conv2d(ours, theirs, 1) if student.dim() == 4 else nn.Linear(ours, theirs)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        student, teacher = self._channels_first(student, teacher)
        if student.dim() == 4:
            student, teacher = (_pooled(x, self.size) for x in (student, teacher))
        return self.project(student), teacher

    def _channels_first(self, *features: Tensor) -> list[Tensor]:
        return [x.permute(0, 3, 1, 2) if last else x for x, last in zip(features, self.lasts, strict=True)]


def is_channels_last(x: Tensor) -> bool:
    """Whether a map is ``(N, H, W, C)``: its sides are the two equal dimensions."""
    return x.dim() == 4 and x.shape[1] == x.shape[2] != x.shape[3]


def _pooled(x: Tensor, size: tuple[int, ...]) -> Tensor:
    return x if tuple(x.shape[2:]) == size else F.adaptive_avg_pool2d(x, (size[0], size[1]))


def bridges_for(
    student: dict[str, Tensor], teacher: dict[str, Tensor], pairs: list[tuple[str, str]], widths: bool, seed: int
) -> nn.ModuleList:
    """A bridge for each pair, its first weights from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.ModuleList(Bridge(student[s], teacher[t], widths, f"{s} and {t}") for s, t in pairs)
