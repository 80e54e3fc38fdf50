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
    flat = [{name: value for key in row for name, value in _cells(key, row[key])} for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in flat for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _cells(key: str, value: Any) -> list[tuple[str, Any]]:
    if key.endswith("_ci"):
        name = key.removesuffix("_ci")
        low, high = value or (None, None)
        return [(f"{name}_low", low), (f"{name}_high", high)]
    if isinstance(value, (list, dict)):
        return [(key, json.dumps(value))]
    return [(key, f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value)]
