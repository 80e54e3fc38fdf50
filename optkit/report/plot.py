"""The picture: accuracy against latency, a point for each variant and engine, with intervals and the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.core.cache import new_file
from optkit.core.setting import Setting
from optkit.report.rows import REFERENCE, Row

if TYPE_CHECKING:
    import altair


def steady_latency(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Latencies that can stand in one picture: the baseline's (eager, step 0) over each row's speedup.

    Variants are timed minutes apart, and the machine drifts meanwhile; speedups, taken within rounds, do not.
    Rows without a speedup are left out.

    Args:
        rows: of one run in one setting.
    """
    at_start = [r for r in rows if r["step"] == 0 and r["speedup"] is not None]
    if not at_start:
        return []
    first = next((r for r in at_start if r["engine"] == REFERENCE), at_start[0])
    reference = first["latency_p50_ms"] * first["speedup"]
    return [
        row
        | {
            "latency_p50_ms": reference / row["speedup"],
            "latency_p50_ms_ci": [reference / bound for bound in reversed(row["speedup_ci"])],
        }
        for row in rows
        if row["speedup"] is not None
    ]


def on_front(rows: Sequence[Row]) -> list[bool]:
    """Whether each row is on the Pareto front: no other is at least as fast and as accurate and better in one."""

    def beats(a: Row, b: Row) -> bool:
        faster, better = a["latency_p50_ms"], a["accuracy"]
        no_worse = faster <= b["latency_p50_ms"] and better >= b["accuracy"]
        return no_worse and (faster < b["latency_p50_ms"] or better > b["accuracy"])

    return [not any(beats(other, row) for other in rows) for row in rows]


def tradeoff(rows: Sequence[Row]) -> altair.TopLevelMixin:
    """An Altair chart of accuracy (%) against median latency (ms, log scale), one panel for each setting."""
    import altair as alt

    panels = []
    for setting in sorted(set(map(Setting.of, rows))):
        panel = steady_latency([r for r in rows if Setting.of(r) == setting])
        panels.append(_panel(alt, panel).properties(title=str(setting), width=340, height=280))
    return alt.hconcat(*panels).resolve_scale(color="shared", shape="shared").configure_view(stroke="#ccc")


def _panel(alt: Any, rows: Sequence[Row]) -> Any:
    data = alt.Data(
        values=[
            {
                "variant": f"{row['step']} {row['stage']}",
                "engine": row["engine"],
                "latency": row["latency_p50_ms"],
                "latency_low": row["latency_p50_ms_ci"][0],
                "latency_high": row["latency_p50_ms_ci"][1],
                "accuracy": 100 * row["accuracy"],
                "accuracy_low": 100 * row["accuracy_ci"][0],
                "accuracy_high": 100 * row["accuracy_ci"][1],
                "front": front,
            }
            for row, front in zip(rows, on_front(rows), strict=True)
        ]
    )
    x = alt.X(
        "latency:Q",
        title="latency, ms (log): the baseline's over the speedup",
        scale=alt.Scale(type="log", nice=False, padding=24),
    )
    y = alt.Y("accuracy:Q", title="accuracy, %", scale=alt.Scale(zero=False, padding=12, domainMax=100))
    color = alt.Color("variant:N", title="variant", sort=None, scale=alt.Scale(scheme="tableau10"))
    base = alt.Chart(data)
    front = base.transform_filter("datum.front").mark_line(
        interpolate="step-after", strokeDash=[4, 3], color="#888", strokeWidth=1.5
    )
    points = base.mark_point(filled=True, size=90, opacity=1).encode(
        x=x,
        y=y,
        color=color,
        shape=alt.Shape("engine:N", title="engine"),
        tooltip=["variant:N", "engine:N", "latency:Q", "accuracy:Q"],
    )
    across = base.mark_rule().encode(x="latency_low:Q", x2="latency_high:Q", y=y, color=color)
    up = base.mark_rule(opacity=0.5).encode(x=x, y="accuracy_low:Q", y2="accuracy_high:Q", color=color)
    return alt.layer(front.encode(x=x, y=y, order="latency:Q"), up, across, points)


def save_tradeoff(rows: Sequence[Row], path: Path) -> None:
    """Writes the chart as an SVG or PNG file, by its ending."""
    options = {"scale_factor": 2} if path.suffix == ".png" else {}
    with new_file(path) as file:
        tradeoff(rows).save(str(file), **options)
