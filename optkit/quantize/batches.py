"""Calibration batches, checked as they are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from optkit.core.errors import UserError

FIX = "one tuple of the model's inputs a batch, such as [(x,) for x, y in loader]"


def check_repeatable(batches: Iterable[tuple[Tensor, ...]]) -> None:
    """Raises a UserError for batches that can be read only once."""
    given = batches.given if isinstance(batches, Batches) else batches
    if iter(given) is given:
        message = "the accuracy tools and max_drop read the batches several times, which an iterator gives only once"
        raise UserError(message, key="batches", fix="a list, or an object whose __iter__ begins anew")


@dataclass(frozen=True)
class Batches:
    """Batches of a user's.

    Attributes:
        given: an iterable of tuples of tensors.
        inputs: how many the model takes.
    """

    given: Iterable[tuple[Tensor, ...]]
    inputs: int

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """The batches.

        Raises:
            UserError: there is none, or one is no tuple of so many inputs.
        """
        number = 0
        for number, batch in enumerate(self.given, 1):
            self._check(batch, number)
            yield batch
        if not number:
            raise UserError("there is no batch to calibrate with", key="batches", fix=FIX)

    def _check(self, batch: Any, number: int) -> None:
        if not isinstance(batch, (tuple, list)):
            raise UserError(f"batch {number} is a {type(batch).__name__}, and no tuple", key="batches", fix=FIX)
        if len(batch) != self.inputs:
            takes = f"{self.inputs} input{'s' * (self.inputs != 1)}"
            message = f"batch {number} has {len(batch)} members, and the model takes {takes}"
            raise UserError(message, key="batches", fix=FIX)
