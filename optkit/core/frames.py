"""Rows as a data frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas


def frame(rows: Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    """A data frame with a column for every key; an interval ``NAME_ci`` is two, ``NAME_low`` and ``NAME_high``."""
    import pandas

    return pandas.DataFrame([{name: value for key in row for name, value in _cells(key, row[key])} for row in rows])


def _cells(key: str, value: Any) -> list[tuple[str, Any]]:
    if not key.endswith("_ci"):
        return [(key, value)]
    low, high = value or (None, None)
    return [(key.removesuffix("ci") + limit, x) for limit, x in (("low", low), ("high", high))]
