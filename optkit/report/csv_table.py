"""Rows as comma-separated values, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from optkit.report.rows import Row

FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_table(rows: Sequence[Row]) -> str:
    """Every key of the rows as a column; an interval is two, ``NAME_low`` and ``NAME_high``, a null an empty cell.

    A text that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    flat = [{name: _plain(value) for name, value in row.items()} for row in flat_rows(rows)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in flat for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def flat_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows with one value a key: an interval is two, and each key in which recipes differ stands for itself."""
    return [{name: value for key in row for name, value in _cells(key, row[key])} for row in rows]


def _plain(value: Any) -> Any:
    """A value that no spreadsheet takes for a formula."""
    if isinstance(value, (list, dict)):
        return json.dumps(value)
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def _cells(key: str, value: Any) -> list[tuple[str, Any]]:
    if key.endswith("_ci"):
        name = key.removesuffix("_ci")
        low, high = value or (None, None)
        return [(f"{name}_low", low), (f"{name}_high", high)]
    return list(value.items()) if key == "settings" else [(key, value)]
