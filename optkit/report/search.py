"""The tables of a search, from its JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optkit.core.errors import UserError
from optkit.core.ledger import SEARCH_NAME
from optkit.report.written import Written

Result = Mapping[str, Any]
Found = Mapping[str, Any]  # a trial
DASH = "-"
COSTS = {
    "latency": "latency",
    "size": "size",
    "memory": "memory",
    "macs": "MACs",
    "energy": "energy",
    "cost": "dollars",
}


def read_search(folder: Path) -> dict[str, Any] | None:
    """What ``search.json`` in a folder holds; None where there is none.

    Raises:
        UserError: it is not a search's.
    """
    file = folder / SEARCH_NAME
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"not JSON: {error}", key=str(file), fix="run the same search again") from error
    if not isinstance(found, dict) or found.get("format") != 1:
        raise UserError("not a search of optkit", key=str(file), fix="run the same search again")
    return found


def search_markdown(result: Result) -> str:
    """Markdown: the verdict, the front, what mattered, and every trial."""
    counts, stages = counted(result["trials"]), result["stages"]
    lines = [f"# Search of {result['recipe']}", "", result["verdict"], ""]
    if result["front"]:
        many = f", corrected for {result['tested']} variants" if result["tested"] > 1 else ""
        split = result["front"][0]["test"]["split"]
        lines += [f"The front, measured on {split}; brackets are 95% intervals{many}.", ""]
        lines += [*_markdown(*front_cells(result)), ""]
    if result["importance"]:
        lines += ["What decides whether a trial is among the best (PED-ANOVA):", "",
                  *_markdown(*importance_cells(result)), ""]  # fmt: skip
    lines += ["All trials, on validation:", "", *_markdown(*trial_cells(result)), ""]
    lines += [
        f"{counts}. They needed {stages['needed']} stages, {stages['distinct']} of them distinct. {stages['made']} were"
        f" made, {stages['made_again']} of them more than once.",
    ]
    if volumes := result["hypervolume"]:
        shown = ", ".join(f"{name} {volume:.4g}" for name, volume in volumes.items())
        lines += ["", f"Volume that the trials within the limits dominate, on validation: {shown}."]
    return "\n".join([*lines, ""])


def counted(trials: Sequence[Found]) -> str:
    """How many trials ended in which way."""
    finished = sum(trial["figures"] is not None for trial in trials)
    stopped = sum(trial["state"] == "pruned" for trial in trials)
    failed = sum(trial["why"] is not None for trial in trials)
    return f"{len(trials)} trials: {finished} finished, {stopped} stopped early, {failed} failed"


def written_of(result: Result) -> Written:
    """How the metric of a search is written."""
    return Written.of(result["written"]["metric"])


def front_cells(result: Result) -> tuple[list[str], list[list[str]]]:
    """Headers and cells of the front, a line for each variant."""
    written = written_of(result)
    headers = ["trial", "engine", "speedup", written.change_title, "on validation", *_cost_titles(result), "recipe"]
    body = []
    for trial in result["front"]:
        test, before = trial["test"], trial["figures"]
        speed, mark = f"{test['speedup']:.2f}", " †" if test["caveat"] else ""
        low_high = "" if test["speedup_ci"] is None else " [{:.2f}, {:.2f}]".format(*test["speedup_ci"])
        body.append(
            [str(trial["number"]), test["engine"], f"{speed}{low_high}{mark}", _change(test, written, limits=True),
             _change(before, written), *(f"{test['costs'][cost]:.3f}" for cost in result["goal.minimize"]),
             trial["recipe"]]
        )  # fmt: skip
    return headers, body


def importance_cells(result: Result) -> tuple[list[str], list[list[str]]]:
    """Headers and cells of what mattered."""
    return ["key", "share"], [[key, f"{share:.0%}"] for key, share in result["importance"].items()]


def trial_cells(result: Result) -> tuple[list[str], list[list[str]]]:
    """Headers and cells of all trials, in their order."""
    written = written_of(result)
    headers = ["trial", "result", written.change_title, "speedup", *_cost_titles(result), "engine", "values"]
    body = []
    for trial in result["trials"]:
        figures, values = trial["figures"], " ".join(trial["overrides"])
        if figures is None:
            ended = "stopped early" if trial["state"] == "pruned" else trial["why"] or trial["state"]
            slow = trial.get("too_slow")  # not in results of before
            speed = DASH if slow is None else f"{slow:.2f}"
            ended, lossy = ended if slow is None else "too slow", trial.get("too_lossy")
            change = DASH if lossy is None else written.signed(-written.gain(lossy))
            ended = ended if lossy is None else "loses too much"
            body.append([str(trial["number"]), ended, change, speed, *[DASH] * (len(headers) - 5), values])
            continue
        costs = [f"{figures['costs'][cost]:.3f}" for cost in result["goal.minimize"]]
        speed = f"{figures['speedup']:.2f}{' †' if figures['caveat'] else ''}"
        body.append(
            [str(trial["number"]), "finished", _change(figures, written), speed, *costs, figures["engine"], values]
        )
    return headers, body


def _cost_titles(result: Result) -> list[str]:
    return [f"{COSTS[cost]}, factor" for cost in result["goal.minimize"]]


def _change(figures: Mapping[str, Any], written: Written, limits: bool = False) -> str:
    """How the metric differs from the baseline's."""
    text = written.signed(-written.gain(figures["loss"]))
    if not limits or figures["loss_ci"] is None:
        return text
    return f"{text} {written.signed_bounds(sorted(-written.gain(limit) for limit in figures['loss_ci']))}"


def _markdown(headers: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rows = [f"| {' | '.join(row)} |" for row in (headers, *body)]
    return [rows[0], "|---|" + "---:|" * (len(headers) - 1), *rows[1:]]
