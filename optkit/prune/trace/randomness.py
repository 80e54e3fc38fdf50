"""Operators that draw random numbers."""

from __future__ import annotations

from typing import Any

import torch

from optkit.core.compat.torch_operators import schema

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
