"""Figures in words: differences, ratios, times and counts, as a person reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from optkit.report.caveats import mark
from optkit.report.rows import Row
from optkit.report.written import Written

DASH = "\N{EN DASH}"  # not measured
MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


def name(row: Row) -> str:
    """A row's variant: its step and stage, or what tells it from a namesake in a run that branches."""
    return row.get("name") or f"{row['step']} {row['stage']}"


def times(row: Row, name: str) -> str:
    """A ratio with its interval, in words."""
    return f"{row[name]:.2f} times {interval(row[f'{name}_ci'])}".rstrip()


def called(row: Row) -> str:
    """A row's stage alone where that is clear, else its name."""
    plain = f"{row['step']} {row['stage']}"
    return row["stage"] if name(row) == plain else name(row)


def headline_ratio(row: Row) -> str:
    """The key of the speedup that compares with the baseline on the same device.

    The reference runs on the processor, so a GPU compares with the baseline on its own engine there.
    """
    return "speedup" if row["device"] == "cpu" or row["speedup_same_engine"] is None else "speedup_same_engine"


def against(row: Row) -> str:
    """What `headline_ratio` is taken against, in words."""
    return f"the baseline on {row['reference'] if headline_ratio(row) == 'speedup' else row['engine']}"


def difference(row: Row, name: str) -> str:
    """A difference of the metric with its unit and its interval, in words."""
    written = Written.of(row)
    low, high = (signed(written, bound) for bound in row[f"{name}_ci"])
    return f"{signed(written, row[name])}{written.change_unit} [{low}, {high}]"


def signed(written: Written, value: float) -> str:
    """A difference of the metric without its unit, with a real minus sign; no sign on what rounds to nothing."""
    text = written.signed(value).replace("-", MINUS)
    return text[1:] if text[1:] in ("0.00", "0.0", "0") else text


def signed_bounds(written: Written, value: float, ci: Sequence[float]) -> str:
    """A difference of the metric and its interval, without the unit."""
    low, high = (signed(written, bound) for bound in ci)
    return f"{signed(written, value)} [{low}, {high}]"


def change(row: Row) -> str:
    """The change of the metric against the baseline, with its interval; a dash where it was not paired."""
    if row["quality_delta"] is None:
        return DASH
    return signed_bounds(Written.of(row), row["quality_delta"], row["quality_delta_ci"])


def quality(row: Row) -> str:
    """The metric with its interval, without the unit."""
    written = Written.of(row)
    return f"{written.number(row['quality'])} {written.bounds(row['quality_ci'])}".rstrip()


def ratio(row: Row, name: str) -> str:
    """A ratio of times with its interval, marked where the timing cannot be trusted; a dash where there is none."""
    return DASH if row[name] is None else f"{row[name]:.2f}{mark(row)} {interval(row[f'{name}_ci'])}".rstrip()


def interval(ci: Sequence[float] | None, digits: int = 2) -> str:
    """Bounds in brackets; nothing where no interval could be given."""
    if ci is None:
        return ""
    return f"[{ci[0]:.{digits}f}, {ci[1]:.{digits}f}]"


def seconds(value: float) -> str:
    """A time that a person reads."""
    if value < 1:
        return f"{value:.2f} s"
    if value < 120:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def count(value: float) -> str:
    """A large number that a person reads."""
    if math.isinf(value):
        return "never"
    for limit, unit in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:,.0f}"
