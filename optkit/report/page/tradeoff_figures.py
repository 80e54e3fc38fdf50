"""Quality against latency and size: every run in one picture for each set of conditions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from optkit.core.setting import Setting
from optkit.report.caveats import MARK
from optkit.report.comparable import MACHINE, differences, surroundings
from optkit.report.page import charts
from optkit.report.page.content import Figure, Table
from optkit.report.page.formatting import change, name, quality, ratio
from optkit.report.page.runs import ShownRun
from optkit.report.plot import on_front, steady_latency, tokens_a_second
from optkit.report.rows import Row
from optkit.report.written import Written, first

HOLLOW = f"Hollow ({MARK} in the table): a timing that cannot be trusted; it is not on the front."


def tradeoff_figures(runs: Sequence[ShownRun]) -> list[Figure]:
    """A picture for each set of conditions that latencies must share to be compared, and one of sizes."""
    every = [row for run in runs for row in run.rows]
    figures = []
    for where, rows in _by(every, _conditions(runs)):
        steady = [r for _, of_run in _by(rows, lambda r: r["run"]) for r in steady_latency(of_run)]
        if steady:
            figures.append(_against_speed(steady, where, len(runs)))
    sized = [row for row in _largest_setting(every) if row["size_mb"]]
    return [*figures, *(_against_size(of_metric, len(runs)) for _, of_metric in _by(sized, lambda r: r["metric"]))]


def _conditions(runs: Sequence[ShownRun]) -> Callable[[Row], str]:
    """What rows must share to stand in one picture, in words; machine, versions and task only where runs differ."""
    around = {run.name: surroundings(run.first) for run in runs}
    differing = differences(list(around.values()))
    data = {run.name: str(run.first.data.get("fingerprint", "")) for run in runs}
    metrics = {run.name: first(run.rows).name for run in runs}
    many_threads = len({row["threads"] for run in runs for row in run.rows}) > 1

    def key(row: Row) -> str:
        parts = [str(Setting.of(row))]
        parts += [f"{row['threads']} threads"] if many_threads else []
        parts += [_named(what, around[row["run"]].get(what, "unknown")) for what in differing]
        parts += [metrics[row["run"]]] if len(set(metrics.values())) > 1 else []
        parts += [f"data {data[row['run']][:8] or 'unknown'}"] if len(set(data.values())) > 1 else []
        return ", ".join(parts)

    return key


def _named(what: str, value: str) -> str:
    return value if what in MACHINE and value != "unknown" else f"{what} {value}"


def _against_speed(steady: Sequence[Row], where: str, num_runs: int) -> Figure:
    """Against tokens a second where models generate, else against latency."""
    generates, fronts = any(row.get("workload") for row in steady), on_front(steady)
    cost, what, unit = ("tokens", "tokens a second", "tokens/s") if generates else ("latency", "latency", "ms")
    values = [
        _point(row, front)
        | {
            "latency": row["latency_p50_ms"],
            "latency_low": row["latency_p50_ms_ci"][0],
            "latency_high": row["latency_p50_ms_ci"][1],
            "tip_latency": f"{row['latency_p50_ms']:.3g} ms",
            **(_tokens(row) if generates else {}),
            "tip_speedup": ratio(row, "speedup"),
            "caveat": row["caveat"] or "",
        }
        for row, front in zip(steady, fronts, strict=True)
    ]
    shown = [("p50 ms", "latency", ".3f"), *([("tokens/s", "tokens", ",.1f")] if generates else [])]
    table = _point_table(values, num_runs, first(steady), *shown, ("speedup", "tip_speedup", ""))
    written, title = first(steady), f"{unit} (log)" if generates else "latency, ms (log)"
    chart = charts.scatter(values, cost, title, _coloring(num_runs), written, more_is_better=generates)
    best = [v for v in values if v["front"]]
    return Figure(
        f"{_capital(written)} against {what}, {where}",
        table,
        chart.to_dict(),
        f"{_capital(written)} against {what} at {where}, {len(values)} points. On the front: "
        + _names(best, cost, unit),
        " ".join(filter(None, (_edge(values, written), HOLLOW if any(v["caveat"] for v in values) else ""))),
    )


def _tokens(row: Row) -> dict[str, Any]:
    value, low, high = tokens_a_second(row)
    return {"tokens": value, "tokens_low": low, "tokens_high": high, "tip_tokens": f"{value:,.4g} tokens/s"}


def _against_size(rows: Sequence[Row], num_runs: int) -> Figure:
    written = first(rows)
    fronts = on_front([row | {"latency_p50_ms": row["size_mb"], "caveat": None} for row in rows])
    values = [
        _point(row, front) | {"size": row["size_mb"], "tip_size": f"{row['size_mb']:.3g} MB", "caveat": ""}
        for row, front in zip(rows, fronts, strict=True)
    ]
    best = [v for v in values if v["front"]]
    return Figure(
        f"{_capital(written)} against size",
        _point_table(values, num_runs, written, ("size MB", "size", ".3f")),
        charts.scatter(values, "size", "size, MB (log)", _coloring(num_runs), written).to_dict(),
        f"{_capital(written)} against size on disk, {len(values)} points. On the front: {_names(best, 'size', 'MB')}",
        f"What must be read to load the variant again; {written.name} is of the largest setting. "
        f"{_edge(values, written)}".strip(),
    )


def _capital(written: Written) -> str:
    return written.name[0].upper() + written.name[1:]


def _edge(values: Sequence[dict[str, Any]], written: Written) -> str:
    return "At the lower edge (↓): worse than the axis shows." if charts.below(list(values), written) else ""


def _coloring(num_runs: int) -> str:
    return "run" if 1 < num_runs <= len(charts.PALETTE) - 1 else "technique"


def _point(row: Row, front: bool) -> dict[str, Any]:
    written = Written.of(row)
    low, high = row["quality_ci"] or (row["quality"], row["quality"])
    return {
        "run": row["run"], "name": name(row), "label": str(row["step"]),
        "technique": row["technique"], "engine": row["engine"], "batch": row["batch_size"], "front": front,
        "quality": written.factor * row["quality"], "quality_low": written.factor * low,
        "quality_high": written.factor * high, "tip_change": change(row), "tip_quality": quality(row),
        "value": written.value(row["quality"]),
    }  # fmt: skip


def _point_table(
    values: Sequence[dict[str, Any]], num_runs: int, written: Written, *costs: tuple[str, str, str]
) -> Table:
    headers = [
        "variant",
        "engine",
        written.title,
        written.change_title,
        *(title for title, _, _ in costs),
        "on the front",
    ]
    rows = [
        [
            v["name"],
            v["engine"],
            v["tip_quality"],
            v["tip_change"],
            *(format(v[key], spec) for _, key, spec in costs),
            "yes" if v["front"] else "",
        ]
        for v in values
    ]
    if num_runs > 1:
        headers, rows = ["run", *headers], [[v["run"], *row] for v, row in zip(values, rows, strict=True)]
    return Table(headers, rows, frozenset({0, 1, 2} if num_runs > 1 else {0, 1}))


def _names(values: Sequence[dict[str, Any]], cost: str, unit: str) -> str:
    some = [
        f"{v['name']} on {v['engine']} ({v[cost]:{',.0f' if v[cost] >= 1000 else '.3g'}} {unit}, {v['value']})"
        for v in values[:6]
    ]
    return "; ".join(some) + ("; and more." if len(values) > 6 else ".")


def _largest_setting(rows: Sequence[Row]) -> list[Row]:
    """One row for each run, variant and engine."""
    largest: dict[tuple[str, str, int, str], Row] = {}
    for row in sorted(rows, key=Setting.of):
        largest[row["run"], row["variant"], row["step"], row["engine"]] = row
    return list(largest.values())


def _by(rows: Sequence[Row], key: Callable[[Row], str]) -> list[tuple[str, list[Row]]]:
    order = {k: n for n, k in enumerate(dict.fromkeys(map(key, rows)))}
    return [(k, list(g)) for k, g in groupby(sorted(rows, key=lambda r: order[key(r)]), key)]
