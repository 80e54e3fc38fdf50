"""The picture: quality against latency, a point for each variant and engine, with intervals and the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.core.cache import new_file
from optkit.core.setting import Setting
from optkit.report.caveats import MARK
from optkit.report.rows import Row, is_trusted
from optkit.report.written import Written, first

if TYPE_CHECKING:
    import altair

DOUBTED = f"{MARK} timing cannot be trusted"


def steady_latency(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Latencies that can stand in one picture: the baseline's (eager, step 0) over each row's speedup.

    Variants are timed minutes apart, and the machine drifts meanwhile; speedups, taken within rounds, do not. Where the
    baseline's own timing cannot be trusted, its latency is the one beside the first variant that can be.
    Rows without a speedup are left out.

    Args:
        rows: of one run in one setting.
    """
    timed = [r for r in rows if r["speedup"] is not None]
    if not any(r["step"] == 0 for r in timed):
        return []
    # every row was timed beside the baseline: one that can be trusted knows its latency
    first = min(timed, key=lambda r: (not is_trusted(r), r["step"], r["engine"] != r["reference"]))
    reference = first["latency_p50_ms"] * first["speedup"]
    return [
        row
        | {
            "latency_p50_ms": reference / row["speedup"],
            "latency_p50_ms_ci": [reference / bound for bound in reversed(_interval(row))],
        }
        for row in timed
    ]


def tokens_a_second(row: Row) -> tuple[float, float, float]:
    """The speed of a row of `steady_latency` whose model generates, and the bounds of its interval."""
    tokens = row["batch_size"] * (row["sequence_length"] if row["workload"] == "prefill" else 1)
    low, high = row["latency_p50_ms_ci"]
    value, least, most = (1e3 * tokens / ms for ms in (row["latency_p50_ms"], high, low))
    return value, least, most


def _interval(row: Row) -> list[float]:
    """That of the speedup; of no width where the timing cannot be trusted."""
    return row["speedup_ci"] if is_trusted(row) else [row["speedup"]] * 2


def on_front(rows: Sequence[Row]) -> list[bool]:
    """Whether each row is on the Pareto front: no other is at least as fast and as good and better in one.

    Rows whose timing cannot be trusted are not on it, and keep no other from it.
    """

    def beats(a: Row, b: Row) -> bool:
        gain = Written.of(a).gain(a["quality"] - b["quality"])
        ours, theirs = a["latency_p50_ms"], b["latency_p50_ms"]
        return bool(ours <= theirs and gain >= 0 and (ours < theirs or gain > 0))

    trusted = [row for row in rows if not row.get("caveat")]
    return [not row.get("caveat") and not any(beats(other, row) for other in trusted) for row in rows]


def tradeoff(rows: Sequence[Row]) -> altair.TopLevelMixin:
    """An Altair chart of the metric against median latency (ms, log scale), one panel for each setting.

    Of models that generate it is against tokens a second.
    """
    import altair as alt

    steady = [
        (str(setting), steady_latency([r for r in rows if Setting.of(r) == setting]))
        for setting in sorted(set(map(Setting.of, rows)))
    ]
    marked = any(row["caveat"] for _, panel in steady for row in panel)
    panels = [_panel(alt, panel, marked).properties(title=title, width=340, height=280) for title, panel in steady]
    row = alt.hconcat(*panels)
    row = row.resolve_scale(color="shared", shape="shared", strokeWidth="shared" if marked else alt.Undefined)
    return row.configure_view(stroke="#ccc")


def _panel(alt: Any, rows: Sequence[Row], marked: bool) -> Any:
    """One setting; ``marked`` where some point of the picture is hollow, so that every panel says what that means."""
    written, generates = first(rows), any(row.get("workload") for row in rows)
    at_x = "tokens" if generates else "latency"
    data = alt.Data(
        values=[
            {
                "variant": f"{row['step']} {row['stage']}",
                "engine": row["engine"],
                **_speed(row, at_x),
                "quality": written.factor * row["quality"],
                **_limits(row, written),
                "front": front,
                "caveat": row["caveat"] or "",
            }
            for row, front in zip(rows, on_front(rows), strict=True)
        ]
    )
    x = alt.X(
        f"{at_x}:Q",
        title=f"{'tokens/s' if generates else 'latency, ms'} (log): the baseline's {'times' if generates else 'over'} "
        "the speedup",
        scale=alt.Scale(type="log", nice=False, padding=24),
    )
    limit = {"domainMax": 100} if written.is_share else {"reverse": not written.higher_is_better}
    y = alt.Y("quality:Q", title=written.title, scale=alt.Scale(zero=False, padding=12, **limit))
    scheme = alt.Scale(scheme="tableau10")
    color = alt.Color("variant:N", title="variant", sort=None, scale=scheme)
    base = alt.Chart(data)
    front = base.transform_filter("datum.front").mark_line(
        interpolate="step-before" if generates else "step-after", strokeDash=[4, 3], color="#888", strokeWidth=1.5
    )
    shape = alt.Shape("engine:N", title="engine")
    speed = alt.Tooltip(f"{at_x}:Q", title="tokens/s" if generates else "latency")
    tooltip = ["variant:N", "engine:N", speed, "quality:Q", *(["caveat:N"] if marked else [])]
    at = {"x": x, "y": y, "color": color, "shape": shape, "tooltip": tooltip}
    points = [base.transform_filter("!datum.caveat").mark_point(filled=True, size=90, opacity=1).encode(**at)]
    if marked:
        hollow = alt.StrokeWidth(
            "timing:N",
            title="hollow",
            scale=alt.Scale(domain=[DOUBTED], range=[2]),
            legend=alt.Legend(
                symbolType="circle", symbolSize=90, symbolFillColor="transparent", symbolStrokeColor="#555"
            ),
        )
        doubted = base.transform_filter("datum.caveat").transform_calculate(timing=f"'{DOUBTED}'")
        points.append(doubted.mark_point(filled=False, size=90, opacity=1).encode(**at, strokeWidth=hollow))
    across = base.mark_rule().encode(x=f"{at_x}_low:Q", x2=f"{at_x}_high:Q", y=y, color=color)
    up = base.mark_rule(opacity=0.5).encode(x=x, y="quality_low:Q", y2="quality_high:Q", color=color)
    return alt.layer(front.encode(x=x, y=y, order=f"{at_x}:Q"), up, across, *points)


def _speed(row: Row, name: str) -> dict[str, float]:
    """Tokens a second of a model that generates, the latency of all others."""
    speed = tokens_a_second(row) if row.get("workload") else (row["latency_p50_ms"], *row["latency_p50_ms_ci"])
    return dict(zip((name, f"{name}_low", f"{name}_high"), speed, strict=True))


def _limits(row: Row, written: Written) -> dict[str, float]:
    low, high = row["quality_ci"] or (row["quality"], row["quality"])
    return {"quality_low": written.factor * low, "quality_high": written.factor * high}


def save_tradeoff(rows: Sequence[Row], path: Path) -> None:
    """Writes the chart as an SVG or PNG file, by its ending."""
    save_chart(tradeoff(rows), path)


def save_chart(chart: altair.TopLevelMixin, path: Path) -> None:
    """Writes a chart as an SVG or PNG file, by its ending; a PNG in two pixels for each of the page's."""
    with new_file(path) as file:
        chart.save(str(file), scale_factor=2 if path.suffix == ".png" else 1)
