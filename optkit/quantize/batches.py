"""Calibration batches, checked as they are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from optkit.core.errors import UserError
from optkit.core.loaders import FIX, Pick, model_inputs


def check_repeatable(batches: Iterable[Any]) -> None:
    """Raises a UserError for batches that can be read only once."""
    given = batches.given if isinstance(batches, Batches) else batches
    if iter(given) is given:
        message = "the accuracy tools and max_drop read the batches several times, which an iterator gives only once"
        raise UserError(message, key="batches", fix="a list, or an object whose __iter__ begins anew")


@dataclass(frozen=True)
class Batches:
    """Batches of a user's.

    Attributes:
        given: any iterable; `optkit.core.loaders.model_inputs` says what its batches may be.
        takes: how many inputs the model takes; None where that is not known.
        pick: which of a batch are the model's inputs; None takes it whole.
    """

    given: Iterable[Any]
    takes: int | None
    pick: Pick | None = None

    @classmethod
    def of(cls, batches: Iterable[Any], takes: int | None, pick: Pick | None = None) -> Batches:
        """Those of a function's arguments; what is one already stays as it is."""
        if isinstance(batches, Batches):
            return batches
        if not isinstance(batches, Iterable) or isinstance(batches, Tensor):
            message = f"a {type(batches).__name__} is no iterable of batches"
            raise UserError(message, key="batches", fix="a DataLoader, or a list of batches")
        return cls(batches, takes, pick)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """The model's inputs of each batch.

        Raises:
            UserError: there is none, or one does not hold so many inputs.
        """
        number = 0
        for number, batch in enumerate(self.given, 1):
            inputs = model_inputs(batch, self.pick, number)
            if self.takes is not None and len(inputs) != self.takes:
                takes = f"{self.takes} input{'s' * (self.takes != 1)}"
                message = f"batch {number} has {len(inputs)} members, and the model takes {takes}"
                raise UserError(message, key="batches", fix=FIX)
            yield inputs
        if not number:
            raise UserError("there is no batch to calibrate with", key="batches", fix="give at least one")
