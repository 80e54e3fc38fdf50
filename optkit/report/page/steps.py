"""What each step of a chain changed against its parent, on one engine in one setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optkit.core.setting import Setting
from optkit.report.page.formatting import name
from optkit.report.plot import steady_latency
from optkit.report.rows import Row, is_trusted, relative_speedup


@dataclass(frozen=True)
class Change:
    """One step against its parent; the first stands for the baseline and changes nothing.

    Attributes:
        name: of the stage, or of the engine that the baseline was moved to; with the names of those left out before it.
        technique: of the stage, or ``engine``.
        row: after the step; its latency is the baseline's over the speedup (see `steady_latency`).
        before_ms, before_quality: of the parent.
        ratio, ratio_ci: how many times faster than the parent; None where the timing of one cannot be trusted.
        delta, delta_ci: the metric less the parent's; None where it was not paired.
    """

    name: str
    technique: str
    row: Row
    before_ms: float
    before_quality: float
    ratio: float | None
    ratio_ci: list[float] | None
    delta: float | None
    delta_ci: list[float] | None


def changes(rows: Sequence[Row], engine: str, setting: Setting, timed: bool = False) -> list[Change]:
    """The steps of one run, from the baseline on the reference over the engine to the last variant that this runs.

    Where the steps are to be `timed`, those whose timing cannot be trusted are left out: what they changed is a part
    of the next step, whose name says so.

    Parent and child were timed in different rounds, each beside the baseline: the interval of their ratio is that of a
    quotient of two independent speedups (their relative half-widths added in quadrature).
    """
    steady = steady_latency([r for r in rows if Setting.of(r) == setting])
    start = next((r for r in steady if r["step"] == 0 and r["engine"] == r["reference"]), None)
    here = main_line([r for r in steady if r["engine"] == engine])
    found: list[Change] = []
    if start is not None:
        found.append(_first(start, f"{start['stage']}, {start['engine']}"))
    left_out = [r for r in here if timed and r is not start and not is_trusted(r)]
    known = {r["variant"]: r for r in here if r not in left_out}
    previous, waiting = start, ""
    for row in here:
        if row is start:
            continue
        called = waiting + (f"{engine} engine" if row["step"] == 0 and start is not None else name(row))
        if row in left_out:
            waiting = f"{called} + "
            continue
        waiting = ""
        if row["step"] == 0:
            found.append(_engine(called, row, start) if start is not None else _first(row, f"{row['stage']}, {engine}"))
        else:
            parent = known.get(row["parent"] or "") or previous
            if parent is not None:
                found.append(_stage(called, row, parent))
        previous = row
    return found


def main_line(rows: Sequence[Row]) -> list[Row]:
    """Of a run that branches, what led to the end of its longest chain; all rows where chains are not recorded."""
    own = [row for row in rows if row.get("control") is None]
    longest = max((row.get("chain") or [] for row in own), key=len, default=[])
    return [row for row in own if not longest or longest[: len(row["chain"])] == row["chain"]]


def _first(row: Row, name: str) -> Change:
    return Change(name, row["technique"], row, row["latency_p50_ms"], row["quality"], 1.0, [1.0, 1.0], 0.0, [0.0, 0.0])


def _engine(called: str, row: Row, start: Row) -> Change:
    return _step(called, "engine", row, start, row["quality_delta"], row["quality_delta_ci"])


def _stage(called: str, row: Row, parent: Row) -> Change:
    paired = row["parent"] == parent["variant"]
    delta, delta_ci = (row["quality_delta_parent"], row["quality_delta_parent_ci"]) if paired else (None, None)
    return _step(called, row["technique"], row, parent, delta, delta_ci)


def _step(
    name: str, technique: str, row: Row, parent: Row, delta: float | None, delta_ci: list[float] | None
) -> Change:
    # the reference itself is 1 by definition, however its own timing went
    is_start = parent["step"] == 0 and parent["engine"] == parent["reference"]
    ratio = relative_speedup(row, parent) if is_trusted(row) and (is_start or is_trusted(parent)) else None
    before = parent["latency_p50_ms"], parent["quality"]
    value, ci = (ratio.value, ratio.ci) if ratio else (None, None)
    return Change(name, technique, row, *before, value, ci, delta, delta_ci)
