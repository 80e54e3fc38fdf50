"""The picture of a comparison: speedups, and changes of scores beside them, each with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from optkit.comparison.requests import key, where
from optkit.core.extras import need
from optkit.report.caveats import MARK

if TYPE_CHECKING:
    import altair

ROW, WIDTH = 26, 300
OPEN = f"Hollow points ({MARK}): the timing cannot be trusted."


def chart(rows: Sequence[dict[str, Any]], against: str, percent: bool) -> altair.TopLevelMixin:
    """A panel of speedups for each kind of request, on a log scale, and beside it one of the paired changes of scores.

    Where a score is one number, it is shown itself.

    Args:
        rows: of a comparison, those that were run.
        against: what speedups refer to.
        percent: show changes in points.
    """
    need("report", "picture", key="plot")
    import altair as alt

    names = list(dict.fromkeys(_name(row) for row in rows))
    parts = []
    for requests in dict.fromkeys(key(row) for row in rows):
        here = [row for row in rows if key(row) == requests]
        panels = [_panel(alt, _values(here, "speedup", 1.0), names, f"times as fast as {against}", 1.0)]
        if any(row.get("score_delta_ci") for row in here):
            values = _values(here, "score_delta", 100.0 if percent else 1.0)
            panels.append(_panel(alt, values, names, "change of score" + (", points" if percent else ""), 0.0))
        elif any("score" in row for row in here):
            panels.append(_panel(alt, _values(here, "score", 1.0), names, "score", None))
        heading = alt.TitleParams(where(here[0]), anchor="start", fontSize=12)
        parts.append(alt.hconcat(*panels).properties(title=heading))
    doubted = any(row["caveat"] for row in rows)
    title = alt.TitleParams([OPEN], anchor="start", fontWeight="normal", fontSize=11) if doubted else alt.Undefined
    return alt.vconcat(*parts, title=title).configure_view(stroke="#ccc")


def _name(row: dict[str, Any]) -> str:
    return f"{row['model']} on {row['engine']}"


def _values(rows: Sequence[dict[str, Any]], key: str, scale: float) -> list[dict[str, Any]]:
    """The points of one panel; a timing that cannot be trusted has no interval, and is hollow."""
    found = []
    for row in rows:
        doubted = bool(row["caveat"]) and key == "speedup"
        low, high = (None if doubted else row.get(f"{key}_ci")) or (row[key], row[key])
        found.append(
            {
                "name": _name(row),
                "model": row["model"],
                "value": scale * row[key],
                "low": scale * low,
                "high": scale * high,
                "doubted": doubted,
                "caveat": row["caveat"] or "",
            }
        )
    return found


def _panel(alt: Any, values: list[dict[str, Any]], names: list[str], title: str, same: float | None) -> Any:
    """One panel; ``same`` is where a row stands that is like the reference. Ratios are on a log scale."""
    log = same == 1
    scale = alt.Scale(type="log", nice=False, padding=16) if log else alt.Scale(zero=False, padding=16)
    axis = alt.Axis(grid=True, tickCount=5, **({"format": "~g"} if log else {}))
    at = alt.X("value:Q", title=title, scale=scale, axis=axis)
    row = alt.Y("name:N", title=None, sort=names, axis=alt.Axis(labelLimit=260) if log else None)
    color = alt.Color("model:N", legend=None, sort=None, scale=alt.Scale(scheme="tableau10"))
    tooltip = ["name:N", "value:Q", "low:Q", "high:Q", "caveat:N"]
    base = alt.Chart(alt.Data(values=values), width=WIDTH, height=alt.Step(ROW))
    layers = [base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", scale=scale), x2="high:Q", y=row, color=color)]
    for doubted in (False, True):
        points = base.transform_filter(f"datum.doubted === {str(doubted).lower()}")
        mark = points.mark_point(filled=not doubted, size=80, opacity=1, strokeWidth=2)
        layers.append(mark.encode(x=at, y=row, color=color, tooltip=tooltip))
    if same is not None:
        line = alt.Chart(alt.Data(values=[{"same": same}])).mark_rule(strokeDash=[4, 3], color="#888")
        layers.insert(0, line.encode(x=alt.X("same:Q", scale=scale)))
    return alt.layer(*layers)
