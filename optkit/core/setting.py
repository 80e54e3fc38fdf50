"""The setting in which a variant is judged and timed: a batch size and, of texts, a length and what is timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FORWARD_PASS = "forward"  # the workload that settings do not name
IN_ORDER = (None, "prefill", "decode")


@dataclass(frozen=True)
class Setting:
    """A batch size, a length of texts and a workload; ordered by workload, then by length, then by batch size.

    Attributes:
        batch_size: of a request.
        sequence_length: in tokens: of padded texts, or of prompts; None where examples have no length.
        workload: what a request is; None for a forward pass.
    """

    batch_size: int
    sequence_length: int | None = None
    workload: str | None = None

    @classmethod
    def of(cls, conditions: Mapping[str, Any]) -> Setting:
        """That of a measurement's conditions, or of a report's row."""
        workload = conditions.get("workload")
        return cls(
            conditions["batch_size"], conditions.get("sequence_length"), None if workload == FORWARD_PASS else workload
        )

    @property
    def length(self) -> dict[str, int]:
        """The condition that holds at any batch size; none where examples have no length."""
        return {} if self.sequence_length is None else {"sequence_length": self.sequence_length}

    @property
    def conditions(self) -> dict[str, Any]:
        """What `Record.find` takes."""
        named = {} if self.workload is None else {"workload": self.workload}
        return {"batch_size": self.batch_size} | self.length | named

    def __lt__(self, other: Setting) -> bool:
        return self._place < other._place

    @property
    def _place(self) -> tuple[int, str, int, int]:
        known = IN_ORDER.index(self.workload) if self.workload in IN_ORDER else len(IN_ORDER)
        return known, self.workload or "", self.sequence_length or 0, self.batch_size

    def __str__(self) -> str:
        length = "" if self.sequence_length is None else f", {self.sequence_length} tokens"
        return f"batch {self.batch_size}{length}" + (f", {self.workload}" if self.workload else "")
