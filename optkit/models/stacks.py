"""The repeated residual blocks of a model."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from optkit.core.calls import Inputs, call, few_tokens
from optkit.core.model_copy import sharing

DIRECTION = "original1"  # of a weight norm: its zero lengths zero the weight, zeros here would make NaN of it


@dataclass(frozen=True)
class Stack:
    """A container of blocks that run one after the other.

    Attributes:
        path: of the ``nn.ModuleList`` or ``nn.Sequential``.
        members: names of all that it holds, in order.
        blocks: places of its residual blocks, whose output is like their input.
        alike: places of these and of the others of their class (the first of a stage may halve the resolution).
    """

    path: str
    members: tuple[str, ...]
    blocks: tuple[int, ...]
    alike: tuple[int, ...]

    def block(self, place: int) -> str:
        """The path of a member."""
        return f"{self.path}.{self.members[place]}" if self.path else self.members[place]

    def block_paths(self) -> list[str]:
        """The paths of its blocks."""
        return [self.block(place) for place in self.blocks]

    def layers(self) -> list[str]:
        """The paths of all members of its blocks' class."""
        return [self.block(place) for place in self.alike]


def find_stacks(model: nn.Module, inputs: Inputs) -> list[Stack]:
    """The stacks of residual blocks of any model, in the model's order; it is run on ``inputs`` and not touched.

    A block is a member of an ``nn.ModuleList`` or ``nn.Sequential`` that stands there with others of its class (or
    alone), runs once, gives out a tensor like the one it takes in, and lets it through even if all of its own matrices
    and kernels are zero: that is what makes it residual. Where blocks hold blocks, the inner ones count.
    """
    probe = sharing(model, buffers=True).eval()
    members = {
        member: (path, place)
        for path, container in probe.named_modules()
        if isinstance(container, (nn.ModuleList, nn.Sequential))
        for place, member in enumerate(container)
        if any(True for _ in member.children()) and _has_company(member, container)
    }
    calls = _calls(probe, members, few_tokens(model, inputs))
    found: dict[str, list[int]] = {}
    for member, (path, place) in members.items():
        if len(calls[member]) == 1 and _is_residual(member, *calls[member][0]):
            found.setdefault(path, []).append(place)
    stacks = (_stack(probe, path, sorted(places), list(found)) for path, places in found.items())
    return [stack for stack in stacks if stack.blocks]


def first_tensor(value: Any) -> Tensor | None:
    """The tensor that a module takes or gives: itself, or the first in a tuple or mapping."""
    if isinstance(value, Tensor):
        return value
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    return next((part for part in parts if isinstance(part, Tensor)), None)


def _stack(probe: nn.Module, path: str, places: Sequence[int], containers: Sequence[str]) -> Stack:
    """The stack at a path, without the blocks that hold other blocks."""
    members = dict(probe.get_submodule(path).named_children())
    names, kinds = list(members), [type(member) for member in members.values()]
    full = [f"{path}.{name}" if path else name for name in names]
    blocks = tuple(i for i in places if not any(c == full[i] or c.startswith(f"{full[i]}.") for c in containers))
    alike = {kinds[i] for i in blocks}
    return Stack(path, tuple(names), blocks, tuple(i for i, kind in enumerate(kinds) if kind in alike))


def _has_company(member: nn.Module, container: Iterable[nn.Module]) -> bool:
    alike = [type(other) is type(member) for other in container]
    return sum(alike) > 1 or all(alike)


def _calls(probe: nn.Module, members: Iterable[nn.Module], inputs: Inputs) -> dict[nn.Module, list[tuple]]:
    """What every member is called with, and whether it gives out a tensor like it."""
    calls: dict[nn.Module, list[tuple]] = {member: [] for member in members}

    def before(member: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        # a cache among the arguments grows with every layer: the call is made again with what it was now
        calls[member].append((copy.deepcopy(args), copy.deepcopy(kwargs)))

    def after(member: nn.Module, _: Any, output: Any) -> None:
        calls[member][-1] = (*calls[member][-1], first_tensor(output))

    handles = [member.register_forward_pre_hook(before, with_kwargs=True) for member in calls]
    handles += [member.register_forward_hook(after) for member in calls]
    with torch.no_grad():
        call(probe, inputs)
    for handle in handles:
        handle.remove()
    return calls


def _is_residual(block: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor | None) -> bool:
    taken = first_tensor((*args, *kwargs.values()))
    if taken is None or output is None or not taken.is_floating_point():
        return False
    if output.shape != taken.shape or output.dtype != taken.dtype:
        return False
    matrices = {name: p for name, p in block.named_parameters() if p.dim() > 1 and not name.endswith(DIRECTION)}
    zeros = {name: torch.zeros_like(p) for name, p in matrices.items()}
    answers: list[Tensor] = []
    for shift in (0.0, 1.0):
        # as steep as it is far from flat: a constant shift would be lost in a norm
        slope = torch.linspace(-1, 1, taken.numel(), device=taken.device, dtype=taken.dtype).view(taken.shape)
        other = taken + shift * slope
        new_args, new_kwargs = (
            copy.deepcopy(replaced(args, taken, other)),
            copy.deepcopy(replaced(kwargs, taken, other)),
        )
        with torch.no_grad():
            answer = first_tensor(torch.func.functional_call(block, zeros, new_args, new_kwargs))
        if answer is None:
            return False
        answers.append(answer)
    # a norm of zeros (a spectral norm) may be NaN, which tells nothing
    finite = all(answer.isfinite().all() for answer in answers)
    return finite and not torch.equal(answers[0], answers[1])


def replaced(values: Any, old: Any, new: Any) -> Any:
    """A tuple or mapping with another object in place of one that it holds."""
    if isinstance(values, Mapping):
        return {name: new if value is old else value for name, value in values.items()}
    return tuple(new if value is old else value for value in values)
