"""Inputs and targets of a batch, whichever way a loader gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optkit.core.errors import UserError, did_you_mean, own_code

if TYPE_CHECKING:
    from torch import Tensor

ENTRIES = "give an entry for each example; a list holds batches, not examples"
Pick = Callable[[Any], Any] | str | int | Sequence[str] | Sequence[int] | None


@dataclass(frozen=True)
class Picking:
    """How inputs and targets are taken from what a loader gives for a batch.

    Attributes:
        inputs: a function of the batch, or the keys (of a dict) or places (of a tuple) of the model's inputs in their
            order. None takes all but the last of a tuple.
        targets: the same; several keys give a dict, several places a tuple. None takes the last of a tuple, and of a
            dict what is no input.
        split: that the batches are of, for errors.
    """

    inputs: Pick = None
    targets: Pick = None
    split: str = "train"

    def __call__(self, given: Any) -> tuple[tuple[Tensor, ...], Any]:
        """The model's inputs by position, and the targets.

        Raises:
            UserError: the batch has other parts, or they are of different numbers of examples.
        """
        inputs = self._inputs(given)
        if isinstance(inputs, Mapping):
            inputs = tuple(inputs.values())
        elif not isinstance(inputs, (list, tuple)):
            inputs = (inputs,)
        tensors = tuple(_single(as_tensor(part)) for part in inputs)
        for tensor in tensors:
            if not hasattr(tensor, "dtype") or tensor.dim() == 0:
                message = f"an input of {self.split} is a {type(tensor).__name__}, not a tensor with a row an example"
                raise UserError(message, key="task.inputs", fix="inputs=... picks the model's inputs from a batch")
        targets = _as_targets(self._targets(given))
        for what, count in _counts(targets):
            if count != len(tensors[0]):
                message = f"{self.split} gives inputs of {len(tensors[0])} examples, and {what} of {count}"
                raise UserError(message, key=f"task.{self.split}", fix=ENTRIES)
        return tensors, targets

    @property
    def names(self) -> list[str] | None:
        """The inputs' names, where they are picked by name."""
        named = [self.inputs] if isinstance(self.inputs, str) else self.inputs
        if isinstance(named, Sequence) and all(isinstance(name, str) for name in named):
            return [str(name) for name in named]
        return None

    def _inputs(self, given: Any) -> Any:
        if self.inputs is not None:
            return self._picked(given, self.inputs, "inputs", tuple)
        if isinstance(given, Mapping):
            message = f"a batch of {self.split} is a dict with {', '.join(map(str, given))}"
            raise UserError(message, key="task.inputs", fix="name the model's inputs: inputs=[...]")
        if not isinstance(given, (list, tuple)) or len(given) < 2:
            message = f"a batch of {self.split} is {_shown(given)}, not (inputs, targets)"
            raise UserError(message, key=f"task.{self.split}", fix="inputs=... and targets=... pick them")
        return given[0] if len(given) == 2 else given[:-1]

    def _targets(self, given: Any) -> Any:
        if self.targets is not None:
            return self._picked(given, self.targets, "targets", dict if isinstance(given, Mapping) else tuple)
        if not isinstance(given, Mapping):
            if not isinstance(given, (list, tuple)) or len(given) < 2:
                message = f"a batch of {self.split} is {_shown(given)}, and has no targets"
                raise UserError(message, key="task.targets", fix="targets=... picks them")
            return given[-1]
        rest = {name: part for name, part in given.items() if name not in (self.names or ())}
        if callable(self.inputs) or not rest:
            message = f"which of {', '.join(map(str, given))} are the targets?"
            raise UserError(message, key="task.targets", fix="name them: targets=...")
        return next(iter(rest.values())) if len(rest) == 1 else rest

    def _picked(self, given: Any, pick: Pick, key: str, several: type) -> Any:
        if callable(pick):
            with own_code(f"the function fails on a batch of {self.split}, {_shown(given)}", f"task.{key}"):
                return pick(given)
        if isinstance(pick, (str, int)):
            return self._part(given, pick, key)
        parts = [(name, self._part(given, name, key)) for name in pick or ()]
        return dict(parts) if several is dict else tuple(part for _, part in parts)

    def _part(self, given: Any, name: str | int, key: str) -> Any:
        try:
            return given[name]
        except (KeyError, IndexError, TypeError) as error:
            known = list(map(str, given)) if isinstance(given, Mapping) else []
            fix = did_you_mean(str(name), known) if known else f"it is {_shown(given)}"
            message = f"a batch of {self.split} has no {name!r}"
            raise UserError(message, key=f"task.{key}", value=name, fix=fix) from error


def as_tensor(value: Any) -> Any:
    """A tensor of an array or of a list of numbers, in fp32 where it was of 64 bits; anything else as it is."""
    import torch

    is_numbers = isinstance(value, (list, tuple)) and value and all(type(x) in (bool, int, float) for x in value)
    if is_numbers or (hasattr(value, "__array__") and not isinstance(value, torch.Tensor)):
        value = torch.as_tensor(value)
    return value.float() if isinstance(value, torch.Tensor) and value.dtype is torch.float64 else value


def _single(value: Any) -> Any:
    """What is alone in a list or a tuple."""
    return value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value


def _as_targets(targets: Any) -> Any:
    if isinstance(targets, Mapping):
        return {name: _as_targets(part) for name, part in targets.items()}
    return (
        tuple(map(_as_targets, targets)) if isinstance(targets, tuple) and not _numbers(targets) else as_tensor(targets)
    )


def _numbers(values: tuple[Any, ...]) -> bool:
    return bool(values) and all(type(x) in (bool, int, float) for x in values)


def _counts(targets: Any, what: str = "targets") -> list[tuple[str, int]]:
    """How many entries each part of targets has."""
    if isinstance(targets, Mapping):
        return [found for name, part in targets.items() for found in _counts(part, f"targets '{name}'")]
    if isinstance(targets, tuple):
        return [found for place, part in enumerate(targets) for found in _counts(part, f"targets {place}")]
    if hasattr(targets, "dim") and targets.dim() == 0:
        return [(what, 0)]
    return [(what, len(targets))] if hasattr(targets, "__len__") else [(what, 0)]


def _shown(given: Any) -> str:
    if isinstance(given, (list, tuple)):
        return f"a {type(given).__name__} of {len(given)}"
    return f"a {type(given).__name__}"
