"""The tensors that nested Python values hold: containers, dataclasses, and objects of any other class."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import nn

from optkit.core.errors import UserError

_PLAIN = (
    type(None), bool, int, float, complex, str, bytes, range, slice, type, enum.Enum, torch.dtype, torch.device,
    torch.layout, torch.memory_format, nn.Module,
)  # fmt: skip
_CACHE = "transformers.cache_utils.Cache"  # keys and values that a language model hands back to itself


def tensors_of(value: Any) -> list[torch.Tensor]:
    """The tensors in nested tuples, lists, mappings and dataclasses, in order; nothing else is searched."""
    return list(_tensors(value, False, ()))


def outputs_of(output: Any) -> list[torch.Tensor]:
    """The tensors in what a model returned, in order, in objects of any class; but not in a language model's cache.

    Raises:
        UserError: naming the class of an object that cannot be searched.
    """
    return list(_tensors(output, True, ()))


def _tensors(value: Any, is_output: bool, within: tuple[int, ...]) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif not isinstance(value, _PLAIN) and id(value) not in within:
        for part in _parts(value, is_output):
            yield from _tensors(part, is_output, (*within, id(value)))


def _parts(value: Any, is_output: bool) -> list[Any]:
    """What an object consists of."""
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (tuple, list)):
        return list(value)
    if is_dataclass(value):
        return [getattr(value, field.name, None) for field in fields(value)]
    if not is_output or any(f"{kind.__module__}.{kind.__qualname__}" == _CACHE for kind in type(value).__mro__):
        return []
    if isinstance(value, AbstractSet) and all(isinstance(part, _PLAIN) for part in value):
        return []
    if callable(value) or not hasattr(value, "__dict__"):
        fix = "return tensors in tuples, lists, dicts or dataclasses"
        raise UserError(f"the model returns a {type(value).__name__}, which may hold tensors out of sight", fix=fix)
    return list(vars(value).values())
