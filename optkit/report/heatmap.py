"""The picture of a sensitivity table: a row for each group, darker where removing units does more harm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.report.plot import save_chart
from optkit.report.written import Written

if TYPE_CHECKING:
    import altair

    from optkit.prune import Sensitivity

ROW, WIDTH, FONT = 16, 480, 10  # pixels
LOSS = "loss"
SMALL_LOSS, SMALL = 0.1, 0.01  # up to such harms the shade is linear, beyond it is logarithmic


def cells(table: Sensitivity) -> list[dict[str, Any]]:
    """A cell for each point: it ends at the share that was removed (%) and begins at the point before."""
    found = []
    for curve in table.curves:
        before = 0.0
        name = f"{curve.name.removesuffix('.weight')} ({curve.units})"
        for share, value, harm in zip(curve.shares, curve.values, table.harms(curve), strict=True):
            text = _text(table, value)
            found.append({"group": name, "from": before, "to": 100 * share, "text": text, "harm": max(harm, 0.0)})
            before = 100 * share
    return found


def _written(table: Sensitivity) -> Written:
    assert table.metric_kind is not None
    return Written(table.metric, "1", table.metric_kind, bool(table.higher_is_better))


def _text(table: Sensitivity, value: float) -> str:
    return f"{value:.2f}" if table.metric == LOSS else _written(table).number(value)


def small_harm(table: Sensitivity) -> float:
    """Up to which harm the shade is linear."""
    if table.metric == LOSS:
        return SMALL_LOSS
    return SMALL if _written(table).is_share else SMALL * (abs(table.dense) or 1.0)


def heatmap(table: Sensitivity) -> altair.TopLevelMixin:
    """An Altair chart of the loss or the metric against the share of each group that is removed."""
    import altair as alt

    data = cells(table)
    rows = list(dict.fromkeys(cell["group"] for cell in data))
    darkest = max((cell["harm"] for cell in data), default=0.0)
    what = f"{_written(table).title}, {_text(table, table.dense)}"
    title = alt.Title(
        f"{table.model}: {what} with all units",
        subtitle=f"by group (units), its lowest by {table.criterion} removed; a figure stands at the share removed",
        anchor="start",
        fontSize=FONT + 2,
        subtitleFontSize=FONT,
    )
    shade = alt.Scale(type="symlog", constant=small_harm(table), scheme="oranges", domainMin=0)
    percent, plain = alt.Scale(domain=[0, 100]), alt.Axis(grid=False)
    x = alt.X("from:Q", title="removed of the group's units, %", scale=percent, axis=plain)
    y = alt.Y("group:N", title=None, sort=rows, axis=alt.Axis(labelLimit=300, labelFontSize=FONT, ticks=False))
    color = alt.Color("harm:Q", scale=shade, legend=None)
    ink = alt.condition(f"datum.harm > {darkest / 4}", alt.value("white"), alt.value("black"))
    base = alt.Chart(alt.Data(values=data), title=title, width=WIDTH, height=ROW * len(rows))
    bars = base.mark_rect(stroke="white").encode(x=x, x2="to:Q", y=y, color=color)
    figures = base.mark_text(align="right", dx=-3, fontSize=FONT - 1).encode(x="to:Q", y=y, text="text:N", color=ink)
    return alt.layer(bars, figures).configure_view(stroke=None)


def save_heatmap(table: Sensitivity, path: Path) -> None:
    """Writes the chart as an SVG or PNG file, by its ending."""
    save_chart(heatmap(table), path)
