"""Calls of a model with the inputs of an example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

Inputs = tuple[Any, ...] | Mapping[str, Any]


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Call a model with a tuple of arguments or a mapping of keyword arguments."""
    return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)
