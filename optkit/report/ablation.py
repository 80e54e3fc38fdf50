"""The tables of an ablation, from its JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optkit.core.setting import Setting
from optkit.report.controls import against_controls, pooled_against_controls
from optkit.report.rows import Row
from optkit.report.written import Written

Result = Mapping[str, Any]
COSTS = {"latency": "latency", "size": "size", "macs": "MACs", "params": "parameters", "peak_memory": "memory"}


def ablation_markdown(result: Result, rows: Sequence[Row] = ()) -> str:
    """Markdown: what each technique brings, in every setting; then interactions, orders, and what was left out.

    Args:
        result: what ``ablation.json`` holds.
        rows: of the study's runs, for the controls among them; those of several seeds are judged together instead.
    """
    counters, written = result["counters"], Written.of(result["metric"])
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
        lines += [
            "",
            f"## {str(Setting.of(batch)).capitalize()}",
            "",
            *_variants(batch, written),
            "",
            *_attribution(batch, written),
        ]
        lines += ["", text] if (text := in_doubt(batch)) else []
        if pairs := [(" + ".join(e["techniques"]), e) for e in batch["interactions"]]:
            lines += ["", "Together, beyond what each brings:", "", *_table("techniques", pairs, written)]
        if orders := [(" > ".join(e["chain"]), e) for e in batch.get("orders", [])]:
            lines += ["", "Another order, against the recipe's:", "", *_table("order", orders, written)]
    several = len(result["seeds"]) > 1
    compared = pooled_against_controls(result["batches"], written) if several else against_controls(rows)
    if compared:
        lines += ["", "Against the controls:", "", *(f"- {line}" for line in compared)]
    if compared and several:
        lines += ["", "These intervals are not corrected for how many are compared."]
    if result["skipped"]:
        lines += ["", "Not run:", ""]
        lines += [f"- {' > '.join(s['chain']) or 'the baseline'}: {s['reason']}" for s in result["skipped"]]
    title = f"{written.effect_title[0].upper()}{written.effect_title[1:]}"
    note = f"{title}; costs as factors of the baseline's; brackets are 95% intervals over test examples"
    many = " and seeds" if several else "; one seed says nothing about others"
    return "\n".join([*lines, "", f"{note}{many}.", ""])


def _variants(batch: Result, written: Written) -> list[str]:
    lines = []
    for v in batch["variants"]:
        name = " > ".join(v["chain"]) or "baseline"
        quality = written.value(v["quality"]["value"])
        lines.append((f"{name} ({v['engine']}, {quality})", v["against_baseline"] or {}))
    return _table("subset", lines, written)


def in_doubt(batch: Result) -> str:
    """The chains whose timing cannot be trusted, in a sentence; empty where all can."""
    if not batch.get("in_doubt"):
        return ""
    chains = (f"{' > '.join(e['chain']) or 'baseline'} on {e['engine']} ({e['caveat']})" for e in batch["in_doubt"])
    return f"No latency is given where it needs one of these, whose timing cannot be trusted: {'; '.join(chains)}."


def _attribution(batch: Result, written: Written) -> list[str]:
    found = batch["attribution"]
    lines = [(e["technique"], e) for e in found["effects"]]
    if batch["total"]:
        lines.append(("total", batch["total"]))
    what = "Shapley values" if found["method"] == "shapley" else "Leaving one out"
    return [f"{what}{': ' + found['reason'] if found['reason'] else ''}.", "", *_table("technique", lines, written)]


def _table(first: str, lines: Sequence[tuple[str, Result]], written: Written) -> list[str]:
    headers, body = effect_cells(first, lines, written, written.signed)
    marks = "|---|" + "---:|" * (len(headers) - 1)
    top, *rest = (f"| {' | '.join(row)} |" for row in (headers, *body))
    return [top, marks, *rest]


def effect_cells(
    first: str,
    lines: Sequence[tuple[str, Result]],
    written: Written,
    show: Callable[[float], str],
    dash: str = "-",
) -> tuple[list[str], list[list[str]]]:
    """Headers and cells of named effects: the change of the metric, and each cost that one of them has as a factor.

    Args:
        first: header of the names.
        lines: names and effects.
        written: how the metric is.
        show: a difference of the metric as text.
        dash: for what was not measured.
    """
    costs = [name for name in COSTS if any(effect.get(name) for _, effect in lines)]
    headers = [first, written.effect_title, *(f"{COSTS[name]}, factor" for name in costs)]
    return headers, [
        [name, _cell(effect.get("quality"), show, dash), *(_cell(effect.get(c), "{:.2f}".format, dash) for c in costs)]
        for name, effect in lines
    ]


def _cell(found: Result | None, show: Callable[[float], str], dash: str) -> str:
    if not found:
        return dash
    low, high = found["ci"] or (0.0, 0.0)
    return show(found["value"]) + (f" [{show(low)}, {show(high)}]" if high - low > 1e-9 else "")
