"""The setting in which a variant is compiled, judged and timed: a batch size and, of texts, a length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Setting:
    """A batch size, and the length to which texts are padded and cut; ordered by length, then by batch size.

    Attributes:
        sequence_length: in tokens; None where examples have no length.
    """

    batch_size: int
    sequence_length: int | None = None

    @classmethod
    def of(cls, conditions: Mapping[str, Any]) -> Setting:
        """That of a measurement's conditions, or of a report's row."""
        return cls(conditions["batch_size"], conditions.get("sequence_length"))

    @property
    def length(self) -> dict[str, int]:
        """The condition that holds at any batch size; none where examples have no length."""
        return {} if self.sequence_length is None else {"sequence_length": self.sequence_length}

    @property
    def conditions(self) -> dict[str, int]:
        """What `Record.find` takes."""
        return {"batch_size": self.batch_size} | self.length

    def __lt__(self, other: Setting) -> bool:
        return (self.sequence_length or 0, self.batch_size) < (other.sequence_length or 0, other.batch_size)

    def __str__(self) -> str:
        return f"batch {self.batch_size}" + ("" if self.sequence_length is None else f", {self.sequence_length} tokens")
