"""Operators of torch: by name, and what their schemas say."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch

from optkit.core.compat.versions import attribute, gone, private

_OPERATOR: type = private("torch._ops.OpOverload")


def private_aten(name: str) -> Any:
    """An operator whose name has a leading underscore, or an overload of it, such as ``_softmax.default`` (torch 2.14).

    Such names stand in exported graphs, and some kernels have no other. Take it where a module is imported, once.

    Raises:
        UserError: this torch has no such operator.
    """
    found: Any = torch.ops.aten
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise gone(f"torch.ops.aten.{name}") from error
    return found


def is_operator(target: object) -> TypeGuard[Any]:
    """Whether a node of a graph calls an operator with a schema, and no function of Python's (torch 2.14)."""
    return isinstance(target, _OPERATOR)


def schema(operator: Any) -> Any:
    """The name, arguments and returns of an operator, and whether it writes to an argument (torch 2.14)."""
    return attribute(operator, "_schema")


def register_int8_operators() -> None:
    """Registers ``torch.ops.quantized_decomposed``, which int8 graphs call, without torchao's import (torch 2.14)."""
    private("torch.ao.quantization.fx._decomposed.quantized_decomposed_lib")
