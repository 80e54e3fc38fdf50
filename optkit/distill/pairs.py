"""Which layer of a student learns from which layer of a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optkit.core.calls import Inputs
from optkit.core.checks import check_choice
from optkit.core.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from optkit.models.stacks import Stack

OUTPUT = "output"  # no layer: what the models return
WHICH = ("blocks", "stages", "last", OUTPUT)
Pairs = list[tuple[str, str]]


def layer_pairs(student: nn.Module, teacher: nn.Module, inputs: Inputs, which: Any) -> Pairs:
    """Paths of modules, the student's and the teacher's.

    Args:
        student, teacher: any two models.
        inputs: example inputs of both, on their device.
        which: ``blocks`` (each block of the student, spread uniformly over the teacher's as in TinyBERT, Jiao et al.,
            2020), ``stages`` (the last block of each stack), ``last`` (the last block), or a mapping of paths or
            patterns, the student's to the teacher's.

    Raises:
        UserError: a pattern that matches nothing, or different numbers of modules on both sides; stacks of blocks that
            cannot be told or do not correspond.
    """
    from optkit.models.stacks import find_stacks

    if isinstance(which, Mapping):
        return [pair for ours, theirs in which.items() for pair in _matched(student, teacher, ours, theirs)]
    ours, theirs = find_stacks(student, inputs), find_stacks(teacher, inputs)
    if not ours or len(ours) != len(theirs):
        found = f"{_described(ours)} in {type(student).__name__}, {_described(theirs)} in {type(teacher).__name__}"
        fix = "say which layers: pairs={STUDENT_PATH: TEACHER_PATH, ...}"
        raise UserError(f"the blocks of student and teacher do not correspond: {found}", key="pairs", fix=fix)
    by_stack = [_uniform(s.layers(), t.layers()) for s, t in zip(ours, theirs, strict=True)]
    if which == "blocks":
        return [pair for pairs in by_stack for pair in pairs]
    ends = [pairs[-1] for pairs in by_stack]
    return ends if which == "stages" else ends[-1:]


def check_pairs(which: Any) -> None:
    """Raises UserError unless ``which`` is what `layer_pairs` takes, or ``output``."""
    if isinstance(which, Mapping):
        if not which or not all(isinstance(x, str) for pair in which.items() for x in pair):
            message = f"{dict(which)!r} is no mapping of paths"
            raise UserError(message, key="pairs", value=which, fix="{layer1.2: layer1.8}, or blocks, stages, last")
    else:
        check_choice("pairs", which, WHICH)


def _matched(student: nn.Module, teacher: nn.Module, ours: str, theirs: str) -> Pairs:
    from optkit.distill.taps import matching

    left, right = matching(student, ours, "pairs"), matching(teacher, theirs, "pairs")
    if len(left) != len(right):
        message = f"'{ours}' matches {len(left)} modules of the student, '{theirs}' {len(right)} of the teacher"
        raise UserError(message, key="pairs", value=ours, fix="patterns that match as many on both sides")
    return list(zip(left, right, strict=True))


def _uniform(ours: list[str], theirs: list[str]) -> Pairs:
    """The i-th of m with the (i T / m)-th of T, the last with the last."""
    step = len(theirs) / len(ours)
    return [(path, theirs[max(round((i + 1) * step), 1) - 1]) for i, path in enumerate(ours)]


def _described(stacks: list[Stack]) -> str:
    return ", ".join(f"{s.path} of {len(s.alike)}" for s in stacks) or "none"
