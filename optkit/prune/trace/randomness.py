"""Operators that draw random numbers, and runs that draw the same ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from optkit.core.calls import Inputs
from optkit.core.compat.torch_operators import schema
from optkit.core.nested import tensors_of

_SWITCHES = ("train", "training")
_SHARES = ("p", "dropout_p", "dropout")


def draws(target: Any, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether an operator, called like this, draws random numbers: a dropout, say, does not in evaluation mode."""
    if torch.Tag.nondeterministic_seeded not in getattr(target, "tags", ()):
        return False
    names = [argument.name for argument in schema(target).arguments]
    given = {argument.name: argument.default_value for argument in schema(target).arguments}
    given |= dict(zip(names, args, strict=False)) | kwargs
    return not any(given.get(name) is False for name in _SWITCHES) and not any(given.get(name) == 0 for name in _SHARES)


@contextmanager
def same_draws(inputs: Inputs, seed: int = 0) -> Iterator[None]:
    """Inside, a model draws the random numbers of this seed; afterwards the generators are as before."""
    devices = sorted({t.device.index for t in tensors_of(inputs) if t.device.type == "cuda"})
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        yield
