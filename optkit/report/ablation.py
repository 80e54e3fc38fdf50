"""The tables of an ablation, from its JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optkit.core.setting import Setting
from optkit.report.controls import against_controls, pooled_against_controls
from optkit.report.rows import Row
from optkit.report.tables import points

Result = Mapping[str, Any]
COSTS = {"latency": "latency", "size": "size", "macs": "MACs", "params": "parameters", "peak_memory": "memory"}


def ablation_markdown(result: Result, rows: Sequence[Row] = ()) -> str:
    """Markdown: what each technique brings, in every setting; then interactions, orders, and what was left out.

    Args:
        result: what ``ablation.json`` holds.
        rows: of the study's runs, for the controls among them; those of several seeds are judged together instead.
    """
    counters = result["counters"]
    stages = (
        f"{counters['chains']} chains of {counters['stages_in_all_chains']} stages, {counters['distinct_stages']} of"
        f" them distinct: {counters['made_now']} made now, {counters['already_there']} already there."
    )
    lines = [
        f"# Ablation of {result['recipe']}: {', '.join(result['techniques'])} after {result['baseline']}",
        "",
        f"{stages} Seeds: {', '.join(map(str, result['seeds']))}. Engine: {result['engine']}.",
    ]
    for batch in result["batches"]:
        lines += ["", f"## {str(Setting.of(batch)).capitalize()}", "", *_variants(batch), "", *_attribution(batch)]
        lines += ["", text] if (text := in_doubt(batch)) else []
        if pairs := [(" + ".join(e["techniques"]), e) for e in batch["interactions"]]:
            lines += ["", "Together, beyond what each brings:", "", *_table("techniques", pairs)]
        if orders := [(" > ".join(e["chain"]), e) for e in batch.get("orders", [])]:
            lines += ["", "Another order, against the recipe's:", "", *_table("order", orders)]
    several = len(result["seeds"]) > 1
    compared = pooled_against_controls(result["batches"], points) if several else against_controls(rows, points)
    if compared:
        lines += ["", "Against the controls:", "", *(f"- {line}" for line in compared)]
    if compared and several:
        lines += ["", "These intervals are not corrected for how many are compared."]
    if result["skipped"]:
        lines += ["", "Not run:", ""]
        lines += [f"- {' > '.join(s['chain']) or 'the baseline'}: {s['reason']}" for s in result["skipped"]]
    note = "Accuracy in points, costs as factors of the baseline's; brackets are 95% intervals over test examples"
    many = " and seeds" if several else "; one seed says nothing about others"
    return "\n".join([*lines, "", f"{note}{many}.", ""])


def _variants(batch: Result) -> list[str]:
    lines = []
    for v in batch["variants"]:
        name = " > ".join(v["chain"]) or "baseline"
        lines.append((f"{name} ({v['engine']}, {100 * v['accuracy']['value']:.1f}%)", v["against_baseline"] or {}))
    return _table("subset", lines)


def in_doubt(batch: Result) -> str:
    """The chains whose timing cannot be trusted, in a sentence; empty where all can."""
    if not batch.get("in_doubt"):
        return ""
    chains = (f"{' > '.join(e['chain']) or 'baseline'} on {e['engine']} ({e['caveat']})" for e in batch["in_doubt"])
    return f"No latency is given where it needs one of these, whose timing cannot be trusted: {'; '.join(chains)}."


def _attribution(batch: Result) -> list[str]:
    found = batch["attribution"]
    lines = [(e["technique"], e) for e in found["effects"]]
    if batch["total"]:
        lines.append(("total", batch["total"]))
    what = "Shapley values" if found["method"] == "shapley" else "Leaving one out"
    return [f"{what}{': ' + found['reason'] if found['reason'] else ''}.", "", *_table("technique", lines)]


def _table(first: str, lines: Sequence[tuple[str, Result]]) -> list[str]:
    headers, body = effect_cells(first, lines, points)
    marks = "|---|" + "---:|" * (len(headers) - 1)
    top, *rest = (f"| {' | '.join(row)} |" for row in (headers, *body))
    return [top, marks, *rest]


def effect_cells(
    first: str, lines: Sequence[tuple[str, Result]], show: Callable[[float], str], dash: str = "-"
) -> tuple[list[str], list[list[str]]]:
    """Headers and cells of named effects: accuracy in points, and each cost that one of them has as a factor.

    Args:
        first: header of the names.
        lines: names and effects.
        show: a difference of accuracies, a share, as points.
        dash: for what was not measured.
    """
    costs = [name for name in COSTS if any(effect.get(name) for _, effect in lines)]
    headers = [first, "accuracy, points", *(f"{COSTS[name]}, factor" for name in costs)]
    return headers, [
        [name, _cell(effect.get("accuracy"), show, dash), *(_cell(effect.get(c), "{:.2f}".format, dash) for c in costs)]
        for name, effect in lines
    ]


def _cell(found: Result | None, show: Callable[[float], str], dash: str) -> str:
    if not found:
        return dash
    low, high = found["ci"] or (0.0, 0.0)
    return show(found["value"]) + (f" [{show(low)}, {show(high)}]" if high - low > 1e-9 else "")
