"""A sweep: quality and latency against the value of each key in which the runs differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optkit.core.setting import Setting
from optkit.report.caveats import mark
from optkit.report.page import charts
from optkit.report.page.content import Figure, Table
from optkit.report.page.formatting import DASH, quality, ratio
from optkit.report.page.runs import ShownRun
from optkit.report.plot import steady_latency
from optkit.report.recipes import flat_recipe
from optkit.report.rows import Row
from optkit.report.sweep import differing_keys, in_order, short_names, shown
from optkit.report.written import Written, common

MOST_KEYS = 4
STEADY = "Latency is the baseline's over the speedup, so that drift within a run does not mislead."


def sweep_figures(runs: Sequence[ShownRun]) -> list[Figure]:
    """Two charts for each swept key, of the largest setting; none where the runs do not differ in a key."""
    recipes = [flat_recipe(run.folder) for run in runs]
    keys = differing_keys(recipes) if len(runs) > 1 else []
    rows = [
        row | {"settings": {key: recipe.get(key) for key in keys}}
        for run, recipe in zip(runs, recipes, strict=True)
        for row in _of_largest_setting(run.rows)
    ]
    written = common(rows)
    if written is None:
        return []
    names = short_names(keys)
    several = [key for key in keys if len({str(row["settings"][key]) for row in rows}) > 1]
    return [figure for key in several[:MOST_KEYS] for figure in _of_key(rows, key, names, written)]


def _of_largest_setting(rows: Sequence[Row]) -> list[Row]:
    own = [row for row in rows if row.get("control") is None]
    largest = max(map(Setting.of, own), default=None)
    here = [row for row in own if Setting.of(row) == largest]
    steady = {(row["variant"], row["engine"]): row for row in steady_latency(here)}
    return [steady.get((row["variant"], row["engine"]), row) for row in here]


def _of_key(rows: Sequence[Row], key: str, names: dict[str, str], written: Written) -> list[Figure]:
    others = [other for other in names if other != key]
    ordered = sorted(rows, key=lambda row: in_order(row["settings"][key]))
    values = [_point(row, key, others, names, written) for row in ordered]
    numeric = all(isinstance(row["settings"][key], (int, float)) for row in rows)
    timed = [value for value in values if value["latency"] is not None]
    table = Table(
        [names[key], *(names[other] for other in others), "variant", "engine", written.title, "p50 ms", "speedup"],
        [_cells(row, key, others) for row in ordered],
        frozenset({len(others) + 1, len(others) + 2}),
    )
    where = str(Setting.of(rows[0]))
    title = f"{written.name[0].upper()}{written.name[1:]}"
    chart = charts.swept(values, "quality", written.title, names[key], numeric=numeric, percent=written.is_share)
    found = [
        Figure(
            f"{title} against {names[key]}, {where}",
            table,
            chart.to_dict(),
            f"{title} of {len(values)} variants against {key}, at {where}.",
            "A line is a variant on an engine; bars are 95% intervals.",
        )
    ]
    if timed:
        chart = charts.swept(timed, "latency", "latency, ms (log)", names[key], numeric=numeric, log=True)
        summary = f"Latency of {len(timed)} variants against {key}, at {where}."
        found.append(Figure(f"Latency against {names[key]}, {where}", table, chart.to_dict(), summary, STEADY))
    return found


def _point(row: Row, key: str, others: Sequence[str], names: dict[str, str], written: Written) -> dict[str, Any]:
    low, high = row["quality_ci"] or (row["quality"], row["quality"])
    value = row["settings"][key]
    rest = ", ".join(f"{names[other]} {shown(row['settings'][other])}" for other in others)
    return {
        "swept": value if isinstance(value, (int, float)) else shown(value),
        "line": f"{row['step']} {row['stage']} {row['engine']} {rest}",
        "name": f"{row['step']} {row['stage']}", "technique": row["technique"], "engine": row["engine"], "rest": rest,
        "quality": written.factor * row["quality"], "quality_low": written.factor * low,
        "quality_high": written.factor * high, "tip_quality": quality(row),
        "latency": row["latency_p50_ms"], "caveat": row["caveat"] or "",
        "tip_latency": DASH if row["latency_p50_ms"] is None else f"{row['latency_p50_ms']:.3g} ms",
    }  # fmt: skip


def _cells(row: Row, key: str, others: Sequence[str]) -> list[str]:
    latency = DASH if row["latency_p50_ms"] is None else f"{row['latency_p50_ms']:.3f}{mark(row)}"
    settings = [shown(row["settings"][name]) for name in (key, *others)]
    return [*settings, f"{row['step']} {row['stage']}", row["engine"], quality(row), latency, ratio(row, "speedup")]
