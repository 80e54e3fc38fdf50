"""CSV files as text: every cell stays as it is. No cell becomes a number, a date or a missing value."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LARGEST_BLOCK = 1 << 30  # bytes; a cell must lie within one
NUMBER = re.compile(r"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?")


def read_csv(paths: Sequence[Path]) -> Any:
    """A ``pyarrow.Table`` of strings; only an empty cell is null.

    Files are UTF-8, with or without a byte order mark, and separated by commas; quoted cells may hold line breaks.

    Raises:
        ValueError: a file without a header, with a column twice, or with a row of more or fewer cells than the header.
    """
    import pyarrow

    return pyarrow.concat_tables([_read(path) for path in paths], promote_options="default")


def _read(path: Path) -> Any:
    import pyarrow
    from pyarrow import csv as arrow

    with path.open(encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file), [])
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"it has several columns named '{min(repeated)}'")
    return arrow.read_csv(
        path,
        arrow.ReadOptions(block_size=min(max(path.stat().st_size, 1 << 20), LARGEST_BLOCK)),
        arrow.ParseOptions(newlines_in_values=True),
        arrow.ConvertOptions(
            column_types=dict.fromkeys(names, pyarrow.string()), null_values=[""], strings_can_be_null=True
        ),
    )


def as_numbers(cells: Sequence[str | None]) -> list[int | float | None] | None:
    """Cells as numbers; None unless each is one, or empty."""
    if not all(cell is None or NUMBER.fullmatch(cell.strip()) for cell in cells):
        return None
    return [None if cell is None else _number(cell.strip()) for cell in cells]


def _number(cell: str) -> int | float:
    return int(cell) if cell.lstrip("+-").isdigit() else float(cell)
