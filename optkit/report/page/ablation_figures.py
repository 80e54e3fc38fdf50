"""What each technique is worth by an ablation: its share of the whole chain's effect, alone and with others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from optkit.core.setting import Setting
from optkit.report.ablation import effect_cells, in_doubt
from optkit.report.page import charts
from optkit.report.page.content import Figure, Table
from optkit.report.page.formatting import DASH, TIMES, signed
from optkit.report.page.runs import ShownRun
from optkit.report.written import Written

Effect = Mapping[str, Any]


def ablation_figures(run: ShownRun) -> list[Figure]:
    """For each setting: attributions of quality and latency, and the tables of interactions and orders."""
    if run.ablation is None:
        return []
    written = Written.of(run.ablation["metric"])
    return [figure for batch in run.ablation["batches"] for figure in _of_batch(batch, written)]


def _of_batch(batch: Mapping[str, Any], written: Written) -> list[Figure]:
    found = batch["attribution"]
    effects = [(e["technique"], e) for e in found["effects"]]
    total = [("whole chain", batch["total"])] if batch["total"] else []
    what = "Shapley values" if found["method"] == "shapley" else "by leaving one out"
    setting = Setting.of(batch)
    table = _table("technique", [*effects, *total], written)
    figures = []
    for key, title, axis, log in (
        ("quality", f"{written.name[0].upper()}{written.name[1:]} bought", f"change of {written.effect_title}", False),
        ("latency", "Latency bought", "times as fast (log)", True),
    ):
        values = [_bar(name, effect[key], log, written) for name, effect in [*effects, *total] if effect.get(key)]
        if values:
            shown = "; ".join(f"{v['name']} {v['label']}" for v in values)
            summary = f"{title} at {setting}, {what}: {shown}."
            chart = charts.bars(values, axis, log=log).to_dict()
            caption = " ".join(filter(None, (found["reason"], in_doubt(batch))))
            figures.append(Figure(f"{title}, {setting}: {what}", table, chart, summary, caption))
    together = [(" + ".join(e["techniques"]), e) for e in batch["interactions"]]
    orders = [(" \N{RIGHTWARDS ARROW} ".join(e["chain"]), e) for e in batch.get("orders") or []]
    margins = [(f"{e['stage']} less {e['control']}", e) for e in batch.get("controls") or [] if e["quality"]]
    if together:
        figures.append(Figure(f"Together, beyond what each brings, {setting}", _table("techniques", together, written)))
    if orders:
        figures.append(Figure(f"Another order, against the recipe's, {setting}", _table("order", orders, written)))
    if margins:
        figures.append(Figure(f"Against the controls over seeds, {setting}", _margins(margins, written)))
    return figures


def _margins(margins: Sequence[tuple[str, Mapping[str, Any]]], written: Written) -> Table:
    headers, cells = effect_cells("technique", margins, written, partial(signed, written), DASH)
    rows = [[*row, e["engine"], ", ".join(map(str, e["seeds"]))] for row, (_, e) in zip(cells, margins, strict=True)]
    return Table([*headers, "engine", "seeds"], rows, frozenset({0, 2, 3}))


def _bar(name: str, effect: Effect, log: bool, written: Written) -> dict[str, Any]:
    """A technique's bar: a change of the metric, or the inverse of a factor on latency."""
    value, ci = effect["value"], effect["ci"] or [effect["value"]] * 2
    if log:
        value, ci = 1 / value, [1 / ci[1], 1 / ci[0]]
        label = f"{TIMES}{value:.2f}"
    else:
        label = signed(written, value)
        value, ci = written.factor * value, [written.factor * bound for bound in ci]
    technique = "model" if name == "whole chain" else name
    return {"name": name, "technique": technique, "value": value, "low": ci[0], "high": ci[1], "label": label}


def _table(first: str, lines: Sequence[tuple[str, Effect]], written: Written) -> Table:
    return Table(*effect_cells(first, lines, written, partial(signed, written), DASH))
