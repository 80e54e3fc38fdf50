"""Batches of any loader, and examples: which tensors are the model's inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from optkit.core.errors import UserError, own_code

if TYPE_CHECKING:
    from torch import Tensor

Pick = Callable[[Any], Any]
FIX = "say which of it are the model's inputs: inputs=lambda batch: batch[0]"
OF_A_DICT = "say which of its entries are the model's inputs: inputs=lambda batch: (batch['{}'],)"


def model_inputs(batch: Any, pick: Pick | None = None, number: int = 1, key: str = "batches") -> tuple[Tensor, ...]:
    """The model's inputs, in the order in which it takes them.

    Args:
        batch: what a loader gives: a tensor is the only input, a tuple or list of tensors are the inputs.
        pick: takes the batch and gives the inputs, a tensor or several, where the batch holds anything else too.
        number: of the batch, from 1, for the message.
        key: the argument that holds the loader, for the message.

    Raises:
        UserError: it is neither, or ``pick`` fails.
    """
    import torch

    found, what = batch, f"batch {number}"
    if pick is not None:
        if not callable(pick):
            raise UserError(f"{pick!r} is no function of a batch", key="inputs", value=pick, fix=FIX)
        with own_code(f"inputs fails on {what}, a {_described(batch)}", "inputs"):
            found = pick(batch)
        what, key = f"inputs gives for {what} what", "inputs"
    if isinstance(found, torch.Tensor):
        return (found,)
    if isinstance(found, (tuple, list)) and found and all(isinstance(x, torch.Tensor) for x in found):
        return tuple(found)
    fix = OF_A_DICT.format(next(iter(found), "x")) if isinstance(found, Mapping) else FIX
    fix = "it must give a tensor, or a tuple of tensors" if pick is not None else fix
    raise UserError(f"{what} is a {_described(found)}, and no tensors", key=key, fix=fix)


def as_example(inputs: Any, key: str = "example_inputs") -> tuple[Tensor, ...]:
    """Example inputs as a tuple of tensors; one tensor is the only input.

    Raises:
        UserError: anything else.
    """
    import torch

    if isinstance(inputs, torch.Tensor):
        return (inputs,)
    if isinstance(inputs, (tuple, list)) and inputs and all(isinstance(x, torch.Tensor) for x in inputs):
        return tuple(inputs)
    message = f"a {_described(inputs)} is no example of the model's inputs"
    raise UserError(message, key=key, fix="a tensor, or a tuple of tensors in the order of the model's arguments")


def _described(batch: Any) -> str:
    """The type of a batch, with the keys of a mapping or the types of a sequence's members."""
    name = type(batch).__name__
    if isinstance(batch, Mapping):
        return f"{name} of {', '.join(map(str, list(batch)[:6]))}" if batch else f"{name} without entries"
    if isinstance(batch, (tuple, list)):
        return f"{name} of {', '.join(type(x).__name__ for x in batch[:6])}" if batch else f"{name} without members"
    return name
