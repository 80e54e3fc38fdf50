"""Which residual blocks a model misses least: by their influence, by position, or at random."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from optkit.core.errors import StageError
from optkit.core.sharding import summed
from optkit.models.stacks import Stack, first_tensor
from optkit.prune.cut.verify import evaluating


def evenly(names: Sequence[str], count: int) -> list[str]:
    """So many blocks, such that the others are spread evenly from the first to the last (Sajjad et al., 2023)."""
    left = len(names) - count
    stay = set(np.linspace(0, len(names) - 1, left).round().astype(int))
    return [name for place, name in enumerate(names) if place not in stay]


def deepest(names: Sequence[str], count: int) -> list[str]:
    """The last blocks but the very last, which prepares the output (Gromov et al., 2024)."""
    return list(names[-count - 1 : -1])


def at_random(names: Sequence[str], count: int, seed: int) -> list[str]:
    """So many blocks by chance: the control."""
    drawn = np.random.default_rng(seed).permutation(len(names))[:count]
    return [names[place] for place in sorted(drawn)]


def least(scores: dict[str, float], stacks: Sequence[Stack], count: int) -> list[str]:
    """The blocks of the lowest scores; of each stack one stays."""
    gone: list[str] = []
    for name in sorted(scores, key=scores.__getitem__):
        if len(gone) < count and leaves_some(stacks, [*gone, name]):
            gone.append(name)
    return gone


def leaves_some(stacks: Sequence[Stack], gone: Sequence[str]) -> bool:
    """Whether each stack keeps a member without these blocks."""
    return all(any(s.block(i) not in gone for i in range(len(s.members))) for s in stacks)


def block_influence(
    model: nn.Module, names: Sequence[str], batches: Iterable[Any], run: Callable[[nn.Module, Any], object]
) -> dict[str, float]:
    """How much each block changes what runs through it: 1 minus the cosine of its input and output.

    The mean over all tokens (Men et al., "ShortGPT", 2024); of tensors other than ``(N, T, D)`` over examples.

    Args:
        model: run in evaluation mode.
        names: paths of its blocks.
        batches: data, read once; of several processes each gives its share.
        run: ``run(model, batch)``.

    Raises:
        StageError: a block's influence is not finite.
    """
    sums, counts = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
    taken: dict[str, Tensor] = {}

    def before(name: str, args: tuple, kwargs: dict[str, Any]) -> None:
        found = first_tensor((*args, *kwargs.values()))
        assert found is not None
        taken[name] = found.detach().clone()  # a block may add in place

    def after(name: str, output: Any) -> None:
        found = first_tensor(output)
        assert found is not None
        a, b = (x.double() if x.dim() == 3 else x.double().flatten(1) for x in (taken.pop(name), found))
        influence = 1 - cosine_similarity(a, b, dim=-1)
        sums[name] += float(influence.sum())
        counts[name] += influence.numel()

    hooks = []
    for name in names:
        block = model.get_submodule(name)
        hooks.append(block.register_forward_pre_hook(lambda _, x, k, n=name: before(n, x, k), with_kwargs=True))
        hooks.append(block.register_forward_hook(lambda _, __, output, n=name: after(n, output)))
    try:
        with torch.no_grad(), evaluating(model):
            for batch in batches:
                run(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    totals = summed({name: torch.tensor([sums[name], counts[name]], dtype=torch.float64) for name in names})
    found = {name: float(total[0] / total[1].clamp(min=1)) for name, total in totals.items()}
    if wrong := [name for name in names if not np.isfinite(found[name])]:
        raise StageError(f"the influence of {wrong[0]} is {found[wrong[0]]}")
    return found
