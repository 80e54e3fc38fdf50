"""The tables of an ablation, from its JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optkit.report.controls import against_controls, pooled_against_controls
from optkit.report.rows import Row
from optkit.report.tables import points

Result = Mapping[str, Any]
COSTS = {"latency": "latency x", "size": "size x", "macs": "MACs x", "params": "params x", "peak_memory": "memory x"}


def ablation_markdown(result: Result, rows: Sequence[Row] = ()) -> str:
    """Markdown: what each technique brings, for every batch size; then interactions, orders, and what was left out.

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
        lines += ["", f"## Batch size {batch['batch_size']}", "", *_variants(batch), "", *_attribution(batch)]
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


def _attribution(batch: Result) -> list[str]:
    found = batch["attribution"]
    lines = [(e["technique"], e) for e in found["effects"]]
    if batch["total"]:
        lines.append(("total", batch["total"]))
    what = "Shapley values" if found["method"] == "shapley" else "Leaving one out"
    return [f"{what}{': ' + found['reason'] if found['reason'] else ''}.", "", *_table("technique", lines)]


def _table(first: str, lines: Sequence[tuple[str, Result]]) -> list[str]:
    costs = [name for name in COSTS if any(name in effect for _, effect in lines)]
    found = [f"| {first} | accuracy, points | " + " | ".join(COSTS[c] for c in costs) + " |"]
    found.append("|---|---:|" + "---:|" * len(costs))
    for name, effect in lines:
        cells = [_points(effect.get("accuracy")), *(_factor(effect.get(c)) for c in costs)]
        found.append(f"| {name} | " + " | ".join(cells) + " |")
    return found


def _points(found: Result | None) -> str:
    if found is None:
        return "-"
    ci = found["ci"]
    return f"{100 * found['value']:+.1f}" + (f" [{100 * ci[0]:+.1f}, {100 * ci[1]:+.1f}]" if ci else "")


def _factor(found: Result | None) -> str:
    if found is None:
        return "-"
    ci = found["ci"]
    shown = f" [{ci[0]:.2f}, {ci[1]:.2f}]" if ci and ci[1] - ci[0] > 1e-9 else ""
    return f"{found['value']:.2f}{shown}"
