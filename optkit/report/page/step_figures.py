"""What each technique contributes: waterfalls of latency and quality, each step against its parent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optkit.report.caveats import doubtful
from optkit.report.page import charts
from optkit.report.page.content import Figure, Table
from optkit.report.page.formatting import DASH, TIMES, interval, quality, signed, signed_bounds
from optkit.report.page.runs import ShownRun, headline
from optkit.report.page.steps import Change, changes
from optkit.report.rows import Row
from optkit.report.written import Written


def step_figures(run: ShownRun) -> list[Figure]:
    """Latency and quality of the chain, where the verdict was measured; none for a run of one variant.

    Steps whose timing cannot be trusted have no bar of their own in the picture of latency.
    """
    at = headline(run)
    if at is None:
        return []
    where = f"{at[0]}, {at[1]}"
    timed, every = changes(run.rows, *at, timed=True), changes(run.rows, *at)
    left_out = doubtful([step.row for step in every[1:]])
    found = [_latency_steps(timed, where, left_out)] if len(timed) > 1 else []
    return [*found, _quality_steps(every, where)] if len(every) > 1 else found


def _latency_steps(steps: Sequence[Change], where: str, left_out: str) -> Figure:
    values = []
    for step in steps:
        now, ci = step.row["latency_p50_ms"], step.row["latency_p50_ms_ci"]
        label = f"{now:.3g} ms" if step is steps[0] else f"{TIMES}{step.ratio:.2f}"
        values.append(
            _bar(step.name, 0 if step is steps[0] else step.before_ms, now, ci)
            | {
                "label": label,
                "what": f"{now:.3g} ms",
                "change": f"{step.ratio:.2f} times as fast {interval(step.ratio_ci)}",
            }
            | {"kind": "total" if step is steps[0] else _kind(step.ratio_ci, 1.0, higher_is_better=True)}
        )
    last = steps[-1].row
    total = f"{last['latency_p50_ms']:.3g} ms, {TIMES}{last['speedup'] / steps[0].row['speedup']:.2f}"
    values.append(
        _bar("in the end", 0, last["latency_p50_ms"], last["latency_p50_ms_ci"])
        | {"label": total, "what": total, "change": "", "kind": "total"}
    )
    high = 1.4 * max(v["ci_high"] for v in values)
    table = Table(
        ["step", "p50 ms", f"{TIMES} its parent", "stage s"],
        [
            [
                s.name,
                f"{s.row['latency_p50_ms']:.3f}",
                DASH if s is steps[0] else f"{s.ratio:.2f} {interval(s.ratio_ci)}",
                _cost(s),
            ]
            for s in steps
        ],
    )
    best = max(steps[1:], key=lambda s: s.ratio or 0.0)
    return Figure(
        f"Latency, {where}",
        table,
        charts.waterfall(values, "latency, ms", 0, high).to_dict(),
        f"Waterfall of latency on {where}: from {steps[0].row['latency_p50_ms']:.3g} ms to "
        f"{last['latency_p50_ms']:.3g} ms; "
        f"the largest step is {best.name}, {best.ratio:.2f} times as fast as its parent.",
        f"{TIMES} says how many times faster than its parent; its interval, in the table, combines two speedups "
        f"taken apart." + (f" Left out, for their timing cannot be trusted: {left_out}." if left_out else ""),
    )


def _quality_steps(steps: Sequence[Change], where: str) -> Figure:
    written, values = Written.of(steps[0].row), []
    for step in steps:
        now, ci = _scaled(step.row)
        first = step is steps[0]
        text = written.value(step.row["quality"])
        change = "" if step.delta is None else signed(written, step.delta)
        gains = None if step.delta_ci is None else written.gains(step.delta_ci)
        values.append(
            _bar(step.name, written.factor * step.before_quality, now, ci)
            | {"label": text if first else change, "what": text, "change": _change(step)}
            | {"kind": "total" if first else _kind(gains, 0.0, higher_is_better=True)}
        )
    last = steps[-1].row
    low = min(v["ci_low"] for v in values)
    high = max(v["ci_high"] for v in values)
    room = max(high - low, 1.0 if written.is_share else 1e-9)
    low = max(0.0, low - 0.12 * room) if written.is_share else low - 0.12 * room
    values[0]["from"] = low
    total = written.value(last["quality"])
    values.append(
        _bar("in the end", low, *_scaled(last)) | {"label": total, "what": total, "change": "", "kind": "total"}
    )
    table = Table(
        ["step", written.title, written.change_title],
        [[s.name, quality(s.row), DASH if s is steps[0] else _change(s)] for s in steps],
    )
    known = [s for s in steps[1:] if s.delta is not None]
    worst = min(known, key=lambda s: written.gain(s.delta or 0.0), default=steps[0])
    loss = f"{signed(written, worst.delta or 0.0)}{written.change_unit}"
    name = written.name
    return Figure(
        f"{name[0].upper()}{name[1:]}, {where}",
        table,
        charts.waterfall(values, written.title, low, high + 0.35 * room, percent=written.is_share).to_dict(),
        f"Waterfall of {name} on {where}: from {written.value(steps[0].row['quality'])} to {total}; "
        f"the largest loss is at {worst.name}, {loss}.",
        "Grey: a change that this test cannot tell from none. The axis does not begin at 0.",
    )


def _scaled(row: Row) -> tuple[float, list[float]]:
    """The metric and its bounds as the axis shows them."""
    written = Written.of(row)
    ci = row["quality_ci"] or [row["quality"]] * 2
    return written.factor * row["quality"], [written.factor * bound for bound in ci]


def _bar(name: str, before: float, now: float, ci: Sequence[float]) -> dict[str, Any]:
    return {
        "name": name, "from": before, "to": now, "ci_low": ci[0], "ci_high": ci[1], "label_at": max(before, now, ci[1]),
    }  # fmt: skip


def _kind(ci: Sequence[float] | None, none: float, higher_is_better: bool) -> str:
    if ci is None or ci[0] <= none <= ci[1]:
        return "same"
    return "better" if (ci[0] > none) == higher_is_better else "worse"


def _change(step: Change) -> str:
    if step.delta is None or step.delta_ci is None:
        return DASH
    return signed_bounds(Written.of(step.row), step.delta, step.delta_ci)


def _cost(step: Change) -> str:
    return DASH if step.technique == "engine" else f"{step.row['stage_cost_s']:.1f}"
