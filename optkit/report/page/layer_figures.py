"""What the layers are worth: sensitivity tables as pictures."""

from __future__ import annotations

from collections.abc import Iterable

from optkit.report.page import charts
from optkit.report.page.content import Figure, Table
from optkit.report.page.runs import ShownRun


def layer_figures(run: ShownRun) -> list[Figure]:
    """A picture for each sensitivity table of a run."""
    found = []
    for where, table in run.sensitivities.items():
        shares = sorted({round(100 * s) for c in table.curves for s in c.shares})
        body = [
            [c.name.removesuffix(".weight"), str(c.units), _curve(table.metric, c.shares, c.values)]
            for c in table.curves
        ]
        what = f"{table.dense:.2f}" if table.metric == "loss" else f"{100 * table.dense:.1f}%"
        found.append(
            Figure(
                f"{table.model}, {where}: {table.metric} {what} with all units",
                Table(["group", "units", f"share removed: {table.metric}"], body, frozenset({0, 2})),
                charts.sensitivity(table).to_dict(),
                f"Sensitivity of {len(table.curves)} groups of units of {table.model}, removed up to "
                f"{max(shares, default=0)}%.",
                f"Ranked by {table.criterion}, measured on validation data.",
                wide=True,
                min_width=560,
            )
        )
    return found


def _curve(metric: str, shares: Iterable[float], values: Iterable[float]) -> str:
    show = (lambda v: f"{v:.2f}") if metric == "loss" else (lambda v: f"{100 * v:.1f}%")
    return (
        ", ".join(f"{share:.0%}: {show(value)}" for share, value in zip(shares, values, strict=True)) or "stays whole"
    )
