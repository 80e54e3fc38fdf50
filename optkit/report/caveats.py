"""Rows whose timing cannot be trusted, in words: how they are marked, which they are, and how to time them again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from optkit.core.setting import Setting
from optkit.report.rows import Row

MARK = "\N{DAGGER}"
MARKED = "marked"  # what ``optkit measure --rows`` calls these rows
MOST = 6


def mark(row: Row) -> str:
    """What stands behind a figure of time: `MARK` where it cannot be trusted, else nothing."""
    return MARK if row.get("caveat") else ""


def doubtful(rows: Sequence[Row]) -> str:
    """The rows that are marked, with the reasons, in one line; empty where all timings can be trusted."""
    found: dict[tuple[str, str], list[Setting]] = {}
    several = len({row["run"] for row in rows}) > 1
    for row in sorted(rows, key=lambda r: r["step"]):
        if row.get("caveat"):
            key = (f"{row['run']}: " if several else "") + variant_name(row), row["caveat"]
            found.setdefault(key, []).append(Setting.of(row))
    parts = [
        f"{name} at {' and '.join(map(str, sorted(set(settings))))} ({caveat})"
        for (name, caveat), settings in found.items()
    ]
    return "; ".join(parts[:MOST]) + (f"; and {len(parts) - MOST} more" if len(parts) > MOST else "")


def footnote(rows: Sequence[Row]) -> str:
    """What the mark in a table means, and which rows it is at; empty where no row is marked."""
    found = doubtful(rows)
    return found and f"{MARK} This timing cannot be trusted, and nothing is concluded from it: {found}."


def remedy(folder: Path) -> str:
    """The command that times a run's marked rows again."""
    return f"optkit measure {shlex.quote(str(folder))} --rows {MARKED}"


def variant_name(row: Row) -> str:
    """A row's step and stage, and the control that it belongs to; on a page, its name there."""
    return row.get("name") or f"{row['step']} {row['stage']}" + (f" ({row['control']})" if row.get("control") else "")
