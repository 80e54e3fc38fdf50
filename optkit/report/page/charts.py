"""The charts of the page, as Altair charts whose colours are names of the style sheet's (``var(--good)``).

The page's script puts the colours in, so that one chart serves light and dark. Every chart fills its container's width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from optkit.report.written import Written

if TYPE_CHECKING:
    import altair

    Layers = altair.LayerChart | altair.FacetChart

    from optkit.prune import Sensitivity

TALL = 22  # rows, from which a chart scrolls and has its axis on top
ROW = 30  # pixels of a row of bars
INK, MUTED, GRID = "var(--ink)", "var(--muted)", "var(--grid)"
PALETTE = [f"var(--series-{n})" for n in range(1, 8)]
OF_TECHNIQUE = {"model": 0, "train": 0, "prune": 1, "quantize": 2, "distill": 3}
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"]
UP_TO_100 = "datum.value > 100 ? '' : datum.label"
NAMED = 12  # up to so many points have their names written beside them

Values = list[dict[str, Any]]


def scatter(
    values: Values, x: str, x_title: str, group: str, written: Written, *, more_is_better: bool = False
) -> Layers:
    """A metric against a cost or a speed on a logarithmic axis, with intervals and the Pareto front; up is better.

    Args:
        values: ``name, engine, quality, quality_low, quality_high, front``, ``x`` and, where it has an
            interval, ``x_low`` and ``x_high``; everything else is shown in the tooltip. A point with a ``caveat`` is
            hollow.
        x: the key of the cost or the speed.
        x_title: the axis' title.
        group: the key that colours the points: ``technique`` or ``run``.
        written: how the metric is.
        more_is_better: whether ``x`` is a speed.
    """
    import altair as alt

    groups = list(dict.fromkeys(v[group] for v in values))
    engines = list(dict.fromkeys(v["engine"] for v in values))
    at = alt.X(
        f"{x}:Q", title=x_title, scale=alt.Scale(type="log", nice=False, padding=26), axis=_log_axis(alt, values, x)
    )
    low, high = _shown(values, written)
    values = [v | ({"label": f"{v['label']} ↓"} if _is_below(v, low, high, written) else {}) for v in values]
    base = alt.Chart(alt.Data(values=values), height=320)
    reverse = not written.higher_is_better
    scale = alt.Scale(domain=[low, high], nice=False, zero=False, clamp=True, reverse=reverse)
    labels = UP_TO_100 if written.is_share else "datum.label"
    up = alt.Y("quality:Q", title=written.title, scale=scale, axis=alt.Axis(labelExpr=labels, tickCount=6))
    color = alt.Color(
        f"{group}:N", title=None, sort=None, scale=_colors(alt, group, groups), legend=_legend(alt, groups)
    )
    shape = alt.Shape(
        "engine:N", title=None, scale=alt.Scale(domain=engines, range=_cycle(SHAPES, len(engines))),
        legend=_legend(alt, engines, outline=True),
    )  # fmt: skip
    titles = _TOOLTIP | {"tip_quality": written.title, "tip_change": written.change_title}
    tooltip = [alt.Tooltip(f"{key}:N", title=title) for key, title in titles.items() if key in values[0]]
    hidden = ("tip_latency", "tip_tokens", "tip_size")
    tooltip += [alt.Tooltip(f"{key}:N", title=key.removeprefix("tip_")) for key in hidden if key in values[0]]
    line = base.transform_filter("datum.front").mark_line(
        interpolate="step-before" if more_is_better else "step-after", strokeDash=[5, 4], color=MUTED, strokeWidth=1.5
    ).encode(x=at, y=up, order=f"{x}:Q")  # fmt: skip
    layers = [
        line,
        base.mark_rule(opacity=0.55, strokeWidth=1.5).encode(x=at, y="quality_low:Q", y2="quality_high:Q", color=color),
    ]
    if f"{x}_low" in values[0]:
        layers.append(base.mark_rule(strokeWidth=1.5).encode(x=f"{x}_low:Q", x2=f"{x}_high:Q", y=up, color=color))
    layers += _points(base, values, {"x": at, "y": up, "color": color, "shape": shape, "tooltip": tooltip})
    if len(values) <= NAMED:
        text = base.mark_text(align="left", dx=8, dy=-8, fontSize=11, color=INK)
        layers.append(text.encode(x=at, y=up, text="label:N"))
    return alt.layer(*layers).properties(width="container")


_TOOLTIP = {
    "run": "run", "name": "variant", "engine": "engine", "batch": "batch", "tip_quality": "", "tip_change": "",
    "tip_speedup": "speedup", "caveat": "cannot be trusted",
}  # fmt: skip


def waterfall(values: Values, title: str, low: float, high: float, *, percent: bool = False) -> Layers:
    """Bars from where each step's parent stood to where the step brought it; whole bars at both ends.

    Args:
        values: ``name, from, to, kind`` (``total``, ``better``, ``worse`` or ``same``), ``label`` (written at the
            bar's end), ``ci_low`` and ``ci_high`` of ``to``, and the texts of the tooltip ``what`` and ``change``.
        title: of the axis.
        low, high: of the axis.
        percent: the axis has no labels beyond 100.
    """
    import altair as alt

    names = [v["name"] for v in values]
    scale = alt.Scale(domain=[low, high], nice=False, zero=False)
    label, tall = UP_TO_100 if percent else "datum.label", len(values) > TALL
    axis = alt.Axis(labelExpr=label, tickCount=5, orient="top" if tall else "bottom")
    at = alt.X("from:Q", title=title, scale=scale, axis=axis)
    row = alt.Y(
        "name:N", title=None, sort=names, axis=alt.Axis(labelLimit=130, ticks=False, domain=False, labelPadding=8)
    )
    kinds = ["total", "better", "worse", "same"]
    scale_of_kind = alt.Scale(domain=kinds, range=[MUTED, "var(--good)", "var(--bad)", MUTED])
    color = alt.Color("kind:N", scale=scale_of_kind, legend=None)
    tooltip = [
        alt.Tooltip("name:N", title="step"),
        alt.Tooltip("what:N", title="value"),
        alt.Tooltip("change:N", title="against parent"),
    ]
    base = alt.Chart(alt.Data(values=values), height=ROW * len(values))
    bars = base.mark_bar(height=14, cornerRadius=2, clip=True).encode(
        x=at, x2="to:Q", y=row, color=color, tooltip=tooltip
    )
    ends = base.mark_tick(thickness=2, size=20, color=INK).encode(x="to:Q", y=row, tooltip=tooltip)
    spans = base.mark_rule(strokeWidth=1.2, color=INK, clip=True).encode(x="ci_low:Q", x2="ci_high:Q", y=row)
    labels = base.mark_text(align="left", dx=7, fontSize=11.5, color=INK)
    end = alt.X("label_at:Q", scale=scale)
    return alt.layer(bars, spans, ends, labels.encode(x=end, y=row, text="label:N")).properties(width="container")


def heat_map(values: Values, rows: Sequence[str], columns: Sequence[str]) -> Layers:
    """Speedups as shades around 1: a row for each variant, a column for each engine and batch size.

    Args:
        values: ``row, column, speedup, text``, ``change`` of the metric, ``ci`` and ``caveat``; a cell with
            a caveat has no shade.
        rows, columns: in order.
    """
    import altair as alt

    widest = max([abs(math.log2(v["speedup"])) for v in values if not v["caveat"]] or [0]) or 1.0
    base = alt.Chart(
        alt.Data(
            values=[
                v | {"log": shade, "strong": abs(shade) > 0.45 * widest}
                for v in values
                for shade in [0.0 if v["caveat"] else math.log2(v["speedup"])]
            ]
        ),
        height=34 * len(rows),
    )
    x = alt.X(
        "column:N",
        title=None,
        sort=list(columns),
        axis=alt.Axis(orient="top", labelAngle=0, ticks=False, domain=False, labelLimit=120),
    )
    y = alt.Y(
        "row:N", title=None, sort=list(rows), axis=alt.Axis(labelLimit=130, ticks=False, domain=False, labelPadding=8)
    )
    shades = alt.Scale(
        domain=[-widest, 0, widest], interpolate="rgb", range=["var(--heat-low)", "var(--heat-mid)", "var(--heat-high)"]
    )
    tooltip = [
        alt.Tooltip(f"{key}:N", title=title)
        for key, title in (
            ("row", "variant"),
            ("column", "engine · batch"),
            ("ci", "speedup"),
            ("change", "change, points"),
            ("caveat", "cannot be trusted"),
        )
    ]
    cells = base.mark_rect(stroke="var(--surface)", strokeWidth=2, cornerRadius=3).encode(
        x=x, y=y, color=alt.Color("log:Q", scale=shades, legend=None), tooltip=tooltip,
        fillOpacity=alt.condition("datum.caveat", alt.value(0), alt.value(1)),
    )  # fmt: skip
    ink = alt.condition("datum.strong", alt.value("var(--heat-ink-strong)"), alt.value("var(--heat-ink)"))
    text = base.mark_text(fontSize=12, fontWeight=600).encode(x=x, y=y, text="text:N", color=ink)
    return alt.layer(cells, text).properties(width="container")


def sensitivity(table: Sensitivity) -> Layers:
    """The metric against the share of each group of units that is removed, darker where it does more harm."""
    import altair as alt

    from optkit.report.heatmap import cells, small_harm

    values = cells(table)
    groups = list(dict.fromkeys(v["group"] for v in values))
    worst = max([v["harm"] for v in values] or [0.0])
    base = alt.Chart(alt.Data(values=values), height=20 * len(groups))
    x = alt.X(
        "from:Q",
        title="removed of the group's units, %",
        scale=alt.Scale(domain=[0, 100]),
        axis=alt.Axis(grid=False, tickCount=5),
    )
    y = alt.Y("group:N", title=None, sort=groups, axis=alt.Axis(labelLimit=150, ticks=False, domain=False))
    shade = alt.Scale(
        type="symlog",
        constant=small_harm(table),
        domainMin=0,
        domainMax=max(worst, 1e-9),
        interpolate="rgb",
        range=["var(--harm-none)", "var(--harm-most)"],
    )
    tooltip = [
        alt.Tooltip("group:N", title="group (units)"),
        alt.Tooltip("to:Q", title="removed, %", format=".0f"),
        alt.Tooltip("text:N", title=table.metric),
    ]
    bars = base.mark_rect(stroke="var(--surface)", strokeWidth=1).encode(
        x=x, x2="to:Q", y=y, color=alt.Color("harm:Q", scale=shade, legend=None), tooltip=tooltip
    )
    ink = alt.condition(f"datum.harm > {worst / 4}", alt.value("var(--harm-ink)"), alt.value(INK))
    figures = base.mark_text(align="right", dx=-3, fontSize=9.5).encode(x="to:Q", y=y, text="text:N", color=ink)
    return alt.layer(bars, figures).properties(width="container")


def curves(values: Values, x_title: str, limit: float | None = None) -> Layers:
    """Throughput against latency, both on logarithmic axes: a line for each variant and engine through its batch sizes.

    Args:
        values: ``line`` (which they belong to), ``name, technique, engine, batch, latency`` and ``throughput``, its
            ``unit``, and the texts of the tooltip ``tip_latency`` and ``tip_throughput``. A point with a ``caveat`` is
            hollow.
        x_title: of the axis of latency.
        limit: of latency, drawn as a dashed line.
    """
    import altair as alt

    techniques = list(dict.fromkeys(v["technique"] for v in values))
    engines = list(dict.fromkeys(v["engine"] for v in values))
    base = alt.Chart(alt.Data(values=values), height=340)
    shown = [*values, *([] if limit is None else [{"latency": limit}])]
    x = alt.X(
        "latency:Q",
        title=x_title,
        scale=alt.Scale(type="log", nice=False, padding=26),
        axis=_log_axis(alt, shown, "latency"),
    )
    y = alt.Y(
        "throughput:Q",
        title=f"{values[0]['unit']} (log)",
        scale=alt.Scale(type="log", nice=False, padding=18),
        axis=_log_axis(alt, values, "throughput", "~s"),
    )
    color = alt.Color(
        "technique:N",
        title=None,
        sort=None,
        scale=_colors(alt, "technique", techniques),
        legend=_legend(alt, techniques),
    )
    shape = alt.Shape(
        "engine:N", title=None, scale=alt.Scale(domain=engines, range=_cycle(SHAPES, len(engines))),
        legend=_legend(alt, engines, outline=True),
    )  # fmt: skip
    tips = {"name": "variant", "engine": "engine", "batch": "batch", "tip_latency": "latency"}
    tips |= {"tip_throughput": "throughput", "caveat": "cannot be trusted"}
    tooltip = [alt.Tooltip(f"{k}:N", title=t) for k, t in tips.items()]
    line = base.mark_line(strokeWidth=1.5, opacity=0.8)
    layers = [line.encode(x=x, y=y, color=color, detail="line:N", order="batch:Q")]
    layers += _points(base, values, {"x": x, "y": y, "color": color, "shape": shape, "tooltip": tooltip})
    if len(values) <= 2 * NAMED:
        text = base.mark_text(align="left", dx=7, dy=9, fontSize=10.5, color=INK)
        layers.append(text.encode(x=x, y=y, text="batch:N"))
    if limit is not None:
        at = alt.Chart(alt.Data(values=[{"latency": limit}]))
        layers.append(at.mark_rule(strokeDash=[5, 4], color=MUTED, strokeWidth=1.5).encode(x="latency:Q"))
    return alt.layer(*layers).properties(width="container")


def swept(
    values: Values, y: str, y_title: str, x_title: str, *, numeric: bool, log: bool = False, percent: bool = False
) -> Layers:
    """A figure against the value of a recipe's key: a line for each variant on each engine.

    Args:
        values: ``swept`` (the key's value), ``line`` (which they belong to), ``name, technique, engine, rest`` (the
            other keys), the figure ``y`` and, where it has an interval, ``y_low`` and ``y_high``. A point with a
            ``caveat`` is hollow.
        y: the key of the figure.
        y_title, x_title: of the axes.
        numeric: whether the values are numbers, else they stand side by side.
        log: whether the figure's axis is logarithmic.
        percent: the figure's axis has no labels beyond 100.
    """
    import altair as alt

    techniques = list(dict.fromkeys(v["technique"] for v in values))
    engines = list(dict.fromkeys(v["engine"] for v in values))
    base = alt.Chart(alt.Data(values=values), height=300)
    few = sorted({v["swept"] for v in values}) if numeric else []
    ticks = alt.Axis(values=few) if len(few) <= 8 else alt.Axis(tickCount=6)
    of_numbers = alt.X("swept:Q", title=x_title, scale=alt.Scale(zero=False, padding=20), axis=ticks)
    x = of_numbers if numeric else alt.X("swept:N", title=x_title, sort=None, axis=alt.Axis(labelAngle=0))
    scale = alt.Scale(type="log", nice=False, padding=18) if log else alt.Scale(zero=False, padding=14)
    labels = UP_TO_100 if percent else "datum.label"
    axis = _log_axis(alt, values, y) if log else alt.Axis(labelExpr=labels, tickCount=6)
    up = alt.Y(f"{y}:Q", title=y_title, scale=scale, axis=axis)
    colors = _colors(alt, "technique", techniques)
    color = alt.Color("technique:N", title=None, sort=None, scale=colors, legend=_legend(alt, techniques))
    shape = alt.Shape(
        "engine:N", title=None, scale=alt.Scale(domain=engines, range=_cycle(SHAPES, len(engines))),
        legend=_legend(alt, engines, outline=True),
    )  # fmt: skip
    tips = {"swept": x_title, "name": "variant", "engine": "engine", "rest": "other keys", f"tip_{y}": y_title}
    tooltip = [alt.Tooltip(f"{key}:N", title=title) for key, title in tips.items()]
    layers = [base.mark_line(strokeWidth=1.5, opacity=0.8).encode(x=x, y=up, color=color, detail="line:N")]
    if f"{y}_low" in values[0]:
        layers.append(base.mark_rule(opacity=0.5).encode(x=x, y=f"{y}_low:Q", y2=f"{y}_high:Q", color=color))
    layers += _points(base, values, {"x": x, "y": up, "color": color, "shape": shape, "tooltip": tooltip})
    return alt.layer(*layers).properties(width="container")


def replicas(values: Values) -> Layers:
    """Requests a second as an area, and the replicas that serve them as a line, each on its own axis.

    Args:
        values: ``hour, rate, replicas``.
    """
    import altair as alt

    base = alt.Chart(alt.Data(values=values), height=300).encode(
        x=alt.X("hour:Q", title="hours", axis=alt.Axis(tickCount=8))
    )
    titles = {"hour": "hour", "rate": "requests/s", "replicas": "replicas"}
    tooltip = [alt.Tooltip(f"{key}:Q", title=title, format=".3~g") for key, title in titles.items()]
    rates = base.mark_area(color=GRID, interpolate="step-after").encode(
        y=alt.Y("rate:Q", title="requests/s (area)", axis=alt.Axis(tickCount=5)), tooltip=tooltip
    )
    steps = base.mark_line(color=PALETTE[1], interpolate="step-after", strokeWidth=2).encode(
        y=alt.Y(
            "replicas:Q",
            title="replicas (line)",
            scale=alt.Scale(domainMin=0),
            axis=alt.Axis(tickCount=5, tickMinStep=1),
        ),
        tooltip=tooltip,
    )
    return alt.layer(rates, steps).resolve_scale(y="independent").properties(width="container")


def _points(base: Any, values: Values, at: dict[str, Any]) -> list[Any]:
    """Filled points, and hollow ones where the timing cannot be trusted."""
    filled = base.mark_point(filled=True, size=95, opacity=1, stroke="var(--surface)", strokeWidth=1)
    if not any(v["caveat"] for v in values):
        return [filled.encode(**at)]
    hollow = base.transform_filter("datum.caveat").mark_point(filled=False, size=80, opacity=1, strokeWidth=2)
    return [filled.transform_filter("!datum.caveat").encode(**at), hollow.encode(**at)]


def bars(values: Values, title: str, *, log: bool = False) -> Layers:
    """Horizontal bars with a label at their end, coloured by technique.

    Args:
        values: ``name, value, label, technique``; with an interval also ``low`` and ``high``.
        title: of the axis.
        log: points with intervals on a logarithmic axis instead of bars, which need a zero.
    """
    import altair as alt

    names = [v["name"] for v in values]
    values = [v | {"end": v["value"] if log else max(0, v["value"], v.get("high", 0))} for v in values]
    techniques = list(dict.fromkeys(v["technique"] for v in values))
    base = alt.Chart(alt.Data(values=values), height=ROW * len(values))
    most = max([_end(v, "high") for v in values] or [1.0])
    least = min([_end(v, "low") for v in values] or [1.0])
    if log:
        scale = alt.Scale(type="log", domain=[least / 1.6, most * 3], nice=False)
    else:
        scale = alt.Scale(domain=[min(0, least), most * 1.22 or 1], nice=False)
    x = alt.X(
        "value:Q",
        title=title,
        scale=scale,
        axis=alt.Axis(values=_log_ticks(least / 1.6, most * 3, 4), format="~s")
        if log
        else alt.Axis(tickCount=4, orient="top" if len(values) > TALL else "bottom"),
    )
    y = alt.Y(
        "name:N", title=None, sort=names, axis=alt.Axis(labelLimit=150, ticks=False, domain=False, labelPadding=8)
    )
    color = alt.Color("technique:N", title=None, sort=None, scale=_colors(alt, "technique", techniques), legend=None)
    tooltip = [alt.Tooltip("name:N", title="what"), alt.Tooltip("label:N", title=title)]
    layers = [base.mark_point(filled=True, size=90, opacity=1) if log else base.mark_bar(height=14, cornerRadius=2)]
    layers = [layers[0].encode(x=x, y=y, color=color, tooltip=tooltip)]
    if values and "low" in values[0]:
        layers.append(base.mark_rule(strokeWidth=1.5, color=INK).encode(x="low:Q", x2="high:Q", y=y))
    text = base.mark_text(align="left", dx=8, dy=-9 if log else 0, fontSize=11.5, color=INK)
    return alt.layer(*layers, text.encode(x="end:Q", y=y, text="label:N")).properties(width="container")


def _end(value: dict[str, Any], key: str) -> float:
    """An end of a bar's interval; of a bar without one its value."""
    return float(value[key]) if key in value else float(value["value"])


def _colors(alt: Any, group: str, names: Sequence[str]) -> Any:
    """A technique has its own colour everywhere; runs take theirs in turn."""
    if group != "technique":
        return alt.Scale(domain=list(names), range=_cycle(PALETTE[1:], len(names)))
    rest = iter(_cycle(PALETTE[4:], len(names)))
    return alt.Scale(
        domain=list(names), range=[PALETTE[OF_TECHNIQUE[n]] if n in OF_TECHNIQUE else next(rest) for n in names]
    )


def _legend(alt: Any, names: Sequence[str], outline: bool = False) -> Any:
    if len(names) < 2:
        return None
    fill = {"symbolFillColor": MUTED} if outline else {}
    return alt.Legend(
        orient="top", direction="horizontal", columns=3, symbolLimit=24, labelLimit=140, symbolOpacity=1, **fill
    )


def _log_axis(alt: Any, values: Values, x: str, format_: str = "~g") -> Any:
    costs = [v[x] for v in values]
    return alt.Axis(values=_log_ticks(0.8 * min(costs), 1.25 * max(costs), 7), format=format_, labelOverlap=True)


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    """Up to so many round ticks: a logarithmic axis by itself has too many, or none."""
    for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [m * 10.0**e for e in range(-9, 16) for m in steps if low <= m * 10.0**e <= high]
        if len(ticks) <= most:
            return ticks
    return ticks[:: math.ceil(len(ticks) / most)]


def _shown(values: Values, written: Written) -> tuple[float, float]:
    """The axis of the metric: around the front, with what is far worse left at the lower edge."""
    if not written.higher_is_better:
        mirrored = [
            v | {"quality_low": -v["quality_high"], "quality_high": -v["quality_low"], "quality": -v["quality"]}
            for v in values
        ]
        low, high = _around(mirrored, written)
        return -high, -low
    return _around(values, written)


def _around(values: Values, written: Written) -> tuple[float, float]:
    front = [v for v in values if v["front"]] or values
    high = max(v["quality_high"] for v in values)
    least, least_on_front = (min(v["quality_low"] for v in vs) for vs in (values, front))
    room = max(high - least_on_front, 1.0 if written.is_share else 1e-9)
    low = least if high - least < 4 * room else least_on_front - room
    return low - 0.08 * (high - low), high + 0.06 * (high - low)


def below(values: Values, written: Written) -> bool:
    """Whether `scatter` leaves some of these at its lower edge."""
    return any(_is_below(v, *_shown(values, written), written) for v in values)


def _is_below(value: dict[str, Any], low: float, high: float, written: Written) -> bool:
    """Whether a point is worse than the axis shows."""
    return bool(value["quality"] < low if written.higher_is_better else value["quality"] > high)


def _cycle(items: Sequence[str], count: int) -> list[str]:
    return [items[n % len(items)] for n in range(count)]
