"""What ``optkit reproduce`` shows: what has changed since, a line for each place, and each difference."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from optkit.core.environment import PACKAGES
from optkit.core.manifest import PACKAGE, Change
from optkit.report.reproduced import (
    DIFFERS,
    EQUAL,
    INTERVALS,
    LATENCY,
    NOT_COMPARED,
    PER_EXAMPLE,
    SPEEDUP,
    Compared,
    Comparison,
)
from optkit.report.tables import Column, fitted, terminal_width

MOST_PACKAGES = 12
NOTE = (
    "Answers are what each test example adds to each metric. Speedups agree where their 95% intervals overlap, and "
    "latencies likewise; a latency alone does not decide, because a machine drifts between two runs."
)
Place = tuple[str, str, str]


def summary(comparison: Comparison, of: Path, run: Path) -> str:
    """The changes, the table, the differences and the verdict."""
    from rich.console import Console

    width = terminal_width()
    text = io.StringIO()
    console = Console(file=text, width=width, highlight=False, markup=False, soft_wrap=True)
    console.print(f"run: {of}\nreproduced: {run}")
    for line in describe_changes(comparison.changes):
        console.print(line)
    places = _places(comparison.compared)
    if places:
        console.print(fitted(_columns(comparison.compared), places, width, NOTE), soft_wrap=False)
    for one in comparison.differing:
        console.print(f"differs: {describe(one)}")
    for only, words in ((comparison.only_first, "not made again"), (comparison.only_second, "not in the run")):
        if only:
            console.print(f"{words}: {', '.join(only)}")
    console.print(verdict(comparison))
    return text.getvalue()


def verdict(comparison: Comparison) -> str:
    """The result in a line."""
    if comparison.equal:
        count = sum(one.how == PER_EXAMPLE and one.verdict == EQUAL for one in comparison.compared)
        left = {one.note for one in comparison.compared if one.verdict == NOT_COMPARED and one.how == INTERVALS}
        untimed = f"; timings that are not compared: {'; '.join(sorted(left))}" if left else ""
        return f"reproduced: all answers of {count} measurements and all costs that compare are equal{untimed}"
    decided = [one for one in comparison.differing if one.decides]
    if decided or comparison.only_first or comparison.only_second:
        since = "" if comparison.changes else ", though nothing that is known has changed"
        return f"not reproduced: {len(decided)} figures differ{since}"
    if comparison.missing:
        places = ", ".join(sorted({f"{one.variant} on {one.engine}" for one in comparison.missing}))
        return f"not reproduced: these answers are missing: {places}"
    return "not reproduced: no answers could be compared"


def describe(one: Compared) -> str:
    """A figure of both runs in words."""
    where = ", ".join(part for part in (one.engine, one.setting) if part)
    note = f" ({one.note})" if one.note else ""
    return (
        f"{one.variant}{f' on {where}' if where else ''}: {one.what} {_figure(one.first)} > {_figure(one.second)}{note}"
    )


def describe_changes(changes: Sequence[Change]) -> list[str]:
    """A line for each change; of many packages those that optkit itself builds on first."""
    packages = [change for change in changes if change.kind == PACKAGE]
    packages.sort(key=lambda change: (change.what not in PACKAGES, change.what))
    others = [change for change in changes if change.kind != PACKAGE]
    lines = [f"changed: {_line(change)}" for change in (*others, *packages[:MOST_PACKAGES])]
    if more := len(packages) - MOST_PACKAGES:
        lines += [f"changed: {more} more packages (--format json names them)"] if more > 0 else []
    return lines or ["changed: nothing that is known"]


def _line(change: Change) -> str:
    return f"{change.kind} {change.what}: {_value(change.before)} > {_value(change.now)}"


def _value(value: object) -> str:
    return (
        "-"
        if value is None
        else ", ".join(f"{k} {v}" for k, v in value.items())
        if isinstance(value, dict)
        else str(value)
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def _places(compared: Sequence[Compared]) -> list[Place]:
    """Variant, engine and setting of each evaluation and timing."""
    return list(dict.fromkeys((c.variant, c.engine, c.setting) for c in compared if c.engine and c.setting))


def _columns(compared: Sequence[Compared]) -> list[Column]:
    def own(place: Place) -> list[Compared]:
        variant, engine, setting = place
        return [
            one
            for one in compared
            if one.variant == variant and one.engine in (None, engine) and one.setting in (None, setting)
        ]

    def answers(place: Place) -> str:
        found = [one for one in own(place) if one.how == PER_EXAMPLE]
        differing = [f"{one.what}: {one.note}" for one in found if one.verdict == DIFFERS]
        return "; ".join(differing) or (EQUAL if any(one.verdict == EQUAL for one in found) else "-")

    def costs(place: Place) -> str:
        found = [one for one in own(place) if one.how not in (PER_EXAMPLE, INTERVALS)]
        return "; ".join(one.what for one in found if one.verdict == DIFFERS) or (EQUAL if found else "-")

    def timing(place: Place, what: str) -> str:
        found = next((one for one in own(place) if one.what == what), None)
        if found is None or found.second is None or found.first is None:
            return "-"
        mark = {DIFFERS: " differs", NOT_COMPARED: "", EQUAL: " agrees"}[found.verdict]
        return f"{found.first:.3g} > {found.second:.3g}{mark}"

    return [
        ("stage", lambda place: place[0], 0),
        ("engine", lambda place: place[1], 0),
        ("setting", lambda place: place[2], 70),
        ("answers", answers, 0),
        ("costs", costs, 0),
        ("speedup", lambda place: timing(place, SPEEDUP), 0),
        ("p50 ms", lambda place: timing(place, LATENCY), 90),
    ]
