"""A search: its trials with the front, what mattered, and the cheapest so far by trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optkit.report.page import charts
from optkit.report.page.content import Figure, Table
from optkit.report.page.formatting import DASH
from optkit.report.page.runs import ShownRun
from optkit.report.search import COSTS, front_cells, importance_cells, trial_cells, written_of
from optkit.report.written import Written

INSIDE, OUTSIDE = "within the limits", "outside the limits"


def search_figures(run: ShownRun) -> list[Figure]:
    """The front, all trials on validation, what decided which were the best, and the history."""
    if run.search is None:
        return []
    result, written = run.search, written_of(run.search)
    cost = result["goal.minimize"][0]
    headers, body = front_cells(result)
    found = [Figure("The front, measured in the end", Table(headers, body, frozenset({0, 1, len(headers) - 1})))]
    finished = [trial for trial in result["trials"] if trial["figures"]]
    fronts = {trial["number"] for trial in result["front"]}
    title = f"{COSTS[cost]}, share of the baseline's"
    values = [_point(trial, trial["number"] in fronts, result, written) for trial in finished]
    headers, body = trial_cells(result)
    table = Table(headers, body, frozenset({0, 1, len(headers) - 2, len(headers) - 1}))
    chart = charts.scatter(values, "cost", f"{title} (log)", "limits", written)
    summary = f"{len(finished)} trials by {written.name} on validation and {COSTS[cost]}."
    found.append(Figure("The trials, on validation", table, chart.to_dict(), summary, wide=True))
    if result["importance"]:
        headers, body = importance_cells(result)
        bars = [
            {"name": key, "value": 100 * share, "label": f"{share:.0%}", "technique": "model"}
            for key, share in result["importance"].items()
        ]
        summary = "; ".join(f"{key} {share:.0%}" for key, share in result["importance"].items())
        caption = "How much each key decides whether a trial is among the best (PED-ANOVA)."
        drawn = charts.bars(bars, "share, %").to_dict()
        found.append(Figure("What mattered", Table(headers, body), drawn, summary, caption))
    if steps := _history(result, cost):
        rows = [[str(step["swept"]), step["tip_cost"]] for step in steps]
        drawn = charts.swept(steps, "cost", f"{title} (log)", "trial", numeric=True, log=True).to_dict()
        summary = f"The cheapest trial within the limits so far, after each of {len(steps)} trials."
        found.append(Figure("Cheapest so far", Table(["trial", title], rows), drawn, summary, summary))
    return found


def _point(trial: Mapping[str, Any], is_front: bool, result: Mapping[str, Any], written: Written) -> dict[str, Any]:
    figures, cost = trial["figures"], result["goal.minimize"][0]
    quality = written.factor * figures["quality"]
    low, high = figures["quality_ci"] or (figures["quality"], figures["quality"])
    name = f"trial {trial['number']}"
    return {
        "name": name, "label": name, "engine": figures["engine"], "front": is_front, "cost": figures["costs"][cost],
        "limits": INSIDE if trial["within"] else OUTSIDE, "quality": quality, "quality_low": written.factor * low,
        "quality_high": written.factor * high, "caveat": figures["caveat"] or "",
        "tip_quality": written.value(figures["quality"]), "tip_change": written.signed(-written.gain(figures["loss"])),
        "tip_speedup": f"{figures['speedup']:.2f}",
    }  # fmt: skip


def _history(result: Mapping[str, Any], cost: str) -> list[dict[str, Any]]:
    """The smallest first cost of the trials within the limits, after each trial from the first of these on."""
    best, found = float("inf"), []
    for trial in result["trials"]:
        if trial["figures"] and trial["within"]:
            best = min(best, trial["figures"]["costs"][cost])
        if best < float("inf"):
            found.append(
                {"swept": trial["number"], "line": "best", "name": "cheapest so far", "technique": "model",
                 "engine": DASH, "rest": "", "cost": best, "tip_cost": f"{best:.3f}", "caveat": ""}
            )  # fmt: skip
    return found
