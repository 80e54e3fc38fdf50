"""What each technique is worth by an ablation: its share of the whole chain's effect, alone and with others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optkit.report.page import charts
from optkit.report.page.content import Figure, Table
from optkit.report.page.runs import ShownRun
from optkit.report.page.words import DASH, TIMES, signed

Effect = Mapping[str, Any]
COSTS = {"latency": "latency", "size": "size", "macs": "MACs", "params": "parameters", "peak_memory": "memory"}


def ablation_figures(run: ShownRun) -> list[Figure]:
    """For each batch size: attributions of accuracy and latency, and the tables of interactions and orders."""
    if run.ablation is None:
        return []
    return [figure for batch in run.ablation["batches"] for figure in _of_batch(batch)]


def _of_batch(batch: Mapping[str, Any]) -> list[Figure]:
    found = batch["attribution"]
    effects = [(e["technique"], e) for e in found["effects"]]
    total = [("whole chain", batch["total"])] if batch["total"] else []
    what = "Shapley values" if found["method"] == "shapley" else "by leaving one out"
    size = batch["batch_size"]
    table = _table("technique", [*effects, *total])
    figures = []
    for key, title, axis, log in (
        ("accuracy", "Accuracy bought", "change of accuracy, points", False),
        ("latency", "Latency bought", "times as fast (log)", True),
    ):
        values = [_bar(name, effect[key], log) for name, effect in [*effects, *total] if effect.get(key)]
        if values:
            shown = "; ".join(f"{v['name']} {v['label']}" for v in values)
            summary = f"{title} at batch {size}, {what}: {shown}."
            chart = charts.bars(values, axis, log=log).to_dict()
            figures.append(Figure(f"{title}, batch {size}: {what}", table, chart, summary, found["reason"] or ""))
    together = [(" + ".join(e["techniques"]), e) for e in batch["interactions"]]
    orders = [(" \N{RIGHTWARDS ARROW} ".join(e["chain"]), e) for e in batch.get("orders") or []]
    margins = [(f"{e['stage']} less {e['control']}", e) for e in batch.get("controls") or [] if e["accuracy"]]
    if together:
        figures.append(Figure(f"Together, beyond what each brings, batch {size}", _table("techniques", together)))
    if orders:
        figures.append(Figure(f"Another order, against the recipe's, batch {size}", _table("order", orders)))
    if margins:
        figures.append(Figure(f"Against the controls over seeds, batch {size}", _margins(margins)))
    return figures


def _margins(margins: Sequence[tuple[str, Mapping[str, Any]]]) -> Table:
    rows = [[name, _points(e["accuracy"]), e["engine"], ", ".join(map(str, e["seeds"]))] for name, e in margins]
    return Table(["technique", "accuracy, points", "engine", "seeds"], rows, frozenset({0, 2, 3}))


def _bar(name: str, effect: Effect, log: bool) -> dict[str, Any]:
    """A technique's bar: points of accuracy, or the inverse of a factor on latency."""
    value, ci = effect["value"], effect["ci"] or [effect["value"]] * 2
    if log:
        value, ci = 1 / value, [1 / ci[1], 1 / ci[0]]
        label = f"{TIMES}{value:.2f}"
    else:
        label = signed(value)
        value, ci = 100 * value, [100 * bound for bound in ci]
    technique = "model" if name == "whole chain" else name
    return {"name": name, "technique": technique, "value": value, "low": ci[0], "high": ci[1], "label": label}


def _table(first: str, lines: Sequence[tuple[str, Effect]]) -> Table:
    costs = [key for key in COSTS if any(effect.get(key) for _, effect in lines)]
    rows = [
        [name, _points(effect.get("accuracy")), *(_factor(effect.get(key)) for key in costs)] for name, effect in lines
    ]
    return Table([first, "accuracy, points", *(f"{COSTS[key]}, factor" for key in costs)], rows)


def _points(effect: Effect | None) -> str:
    if not effect:
        return DASH
    ci = effect["ci"]
    return signed(effect["value"]) + (f" [{signed(ci[0])}, {signed(ci[1])}]" if ci else "")


def _factor(effect: Effect | None) -> str:
    if not effect:
        return DASH
    ci = effect["ci"]
    return f"{effect['value']:.2f}" + (f" [{ci[0]:.2f}, {ci[1]:.2f}]" if ci else "")
