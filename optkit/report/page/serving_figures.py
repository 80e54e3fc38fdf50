"""What it costs to serve: dollars of variants and policies, a day's replicas, and what pays from when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optkit.report.caveats import MARK
from optkit.report.page import charts
from optkit.report.page.content import Figure, Table
from optkit.report.page.formatting import MINUS, count
from optkit.report.page.runs import ShownRun

AUTOSCALED = "autoscaled"


def serving_figures(run: ShownRun) -> list[Figure]:
    """The figures of what ``optkit cost`` found; none where it was not run."""
    if run.serving is None:
        return []
    deployments = run.serving["deployments"]
    found = [_dollars(run.serving)]
    scaled = [one for one in deployments if one["policy"] == AUTOSCALED and one["caveat"] is None]
    if scaled:
        found.append(_replicas(min(scaled, key=lambda one: float(one["dollars_a_million"]))))
    if run.serving["paybacks"]:
        found.append(_paybacks(run.serving))
    return found


def _dollars(serving: Mapping[str, Any]) -> Figure:
    values = []
    for one in serving["deployments"]:
        ends = one["dollars_a_million_ci"] or [one["dollars_a_million"]] * 2
        million = one["dollars_a_million"]
        name = f"{_name(one)}, {one['engine']}, {one['policy']}"
        interval = {"low": ends[0], "high": ends[1], "label": _money(million)}
        values.append({"name": name, "technique": one["technique"], "value": million, **interval})
    rows = [
        [
            *(_name(one), one["engine"], one["policy"], one["offer"], str(one["max_batch"])),
            *(f"{one['mean_replicas']:.1f}", f"{one['p99_ms']:.3g}", _money(one["dollars_a_day"])),
            _interval(one["dollars_a_million"], one["dollars_a_million_ci"]),
        ]
        for one in serving["deployments"]
    ]
    headers = ["variant", "engine", "policy", "offer", "batch", "replicas", "p99 ms", "USD a day", "USD a million"]
    return Figure(
        f"Dollars a million requests within {serving['p99_ms']:g} ms",
        Table(headers, rows, frozenset({0, 1, 2, 3})),
        charts.bars(values, "USD a million requests").to_dict(),
        "Dollars a million requests: " + "; ".join(f"{v['name']} {v['label']}" for v in values[:8]) + ".",
        f"{' '.join(serving['traffic_lines'])} Prices of {serving['prices']}.",
        wide=True,
        min_width=560,
    )


def _replicas(one: Mapping[str, Any]) -> Figure:
    values = [{"hour": hour, "rate": rate, "replicas": number} for hour, rate, number in one["timeline"]]
    rows = [
        [f"{v['hour']:.1f}", f"{v['rate']:.3g}", f"{v['replicas']:.0f}"] for v in values[:: max(1, len(values) // 24)]
    ]
    return Figure(
        f"Replicas against traffic: {_name(one)}, {one['engine']}",
        Table(["hour", "requests/s", "replicas"], rows, frozenset()),
        charts.replicas(values).to_dict(),
        f"Replicas over time: {one['mean_replicas']:.1f} on average, {one['replicas']} at most.",
        "The cheapest autoscaled deployment. Starting replicas are counted.",
    )


def _paybacks(serving: Mapping[str, Any]) -> Figure:
    rows = [
        [
            *(one["name"], one["policy"], f"{one['making_dollars']:.3g}"),
            f"{one['saved_a_million']:.3g}".replace("-", MINUS),
            "never" if one["requests"] is None else count(one["requests"]),
            "never" if one["days"] is None else f"{one['days']:,.3g}",
        ]
        for one in serving["paybacks"]
    ]
    headers = ["variant", "policy", "making USD", "saves USD a million", "requests to break even", "days"]
    return Figure("From when it pays", Table(headers, rows, frozenset({0, 1})))


def _name(one: Mapping[str, Any]) -> str:
    return f"{one['name']}{MARK if one['caveat'] else ''}"


def _money(value: float) -> str:
    return f"{value:,.2f}" if value >= 0.995 else f"{value:.3g}"


def _interval(value: float, ends: list[float] | None) -> str:
    return _money(value) + ("" if ends is None else f" [{_money(ends[0])}, {_money(ends[1])}]")
