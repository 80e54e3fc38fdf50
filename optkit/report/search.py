"""The tables of a search, from its JSON."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from optkit.core.errors import UserError
from optkit.core.ledger import SEARCH_NAME
from optkit.report.sweep import short_names
from optkit.report.written import Written

Result = Mapping[str, Any]
Found = Mapping[str, Any]  # a trial
DASH = "-"
LOG_NAME = "search.log"
SHOWN = 10  # trials in a terminal
COSTS = {
    "latency": "latency",
    "size": "size",
    "memory": "memory",
    "macs": "MACs",
    "energy": "energy",
    "cost": "dollars",
}
# of the terminal, from which on a column is shown
WIDTHS = {"on validation": 90, "recipe": 80} | {f"{name}, factor": 100 for name in COSTS.values()}


def read_search(folder: Path) -> dict[str, Any] | None:
    """What ``search.json`` in a folder holds; None where there is none.

    Raises:
        UserError: it is not a search's, or a search that has no result yet.
    """
    file = folder / SEARCH_NAME
    if not file.is_file():
        if (folder / LOG_NAME).is_file():
            raise UserError("this search has no result yet", key=str(folder), fix="run the same search again")
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
        split = result["front"][0]["test"]["split"]
        lines += [f"The front, measured on {split}; brackets are 95% intervals{_corrected(result)}.", ""]
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
        lines += ["", f"Volume that the trials within the limits dominate, on validation: {_volumes(volumes)}."]
    return "\n".join([*lines, ""])


def search_text(result: Result, width: int) -> str:
    """For a terminal: the verdict, the front, what mattered, and the cheapest trials within the limits.

    Args:
        result: of the search.
        width: of the terminal; tables leave out columns that do not fit.
    """
    from rich.console import Console

    from optkit.report.tables import fitted

    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=sys.stdout.isatty(), force_jupyter=False)

    def show(title: str, headers: Sequence[str], body: Sequence[Sequence[str]], note: str = "") -> None:
        cells = [(header, itemgetter(place), WIDTHS.get(header, 0)) for place, header in enumerate(headers)]
        console.print(f"\n{title}", highlight=False, markup=False)
        console.print(fitted(cells, body, width, note))

    console.print(result["verdict"], highlight=False, markup=False)
    if result["front"]:
        split = result["front"][0]["test"]["split"]
        show(f"The front, on {split}:", *front_cells(result), f"Brackets are 95% intervals{_corrected(result)}.")
    kept = [trial for trial in result["trials"] if trial["within"]]
    if kept:
        first = result["goal.minimize"][0]
        cheapest = sorted(kept, key=lambda trial: float(trial["figures"]["costs"][first]))[:SHOWN]
        title = "Trials within the limits" if len(kept) <= SHOWN else f"The {SHOWN} cheapest of {len(kept)} trials"
        show(f"{title}, on validation:", *_brief_trials(result, cheapest))
    mattered = [f"{short} {result['importance'][key]:.0%}" for key, short in short_names(result["importance"]).items()]
    if mattered:
        said = f"What decides whether a trial is among the best: {', '.join(mattered)}."
        console.print(f"\n{said}", highlight=False, markup=False)
    console.print(f"\n{counted(result['trials'])}.", highlight=False, markup=False)
    if volumes := result["hypervolume"]:
        console.print(f"Volume within the limits: {_volumes(volumes)}.", highlight=False, markup=False)
    return text.getvalue()


def _brief_trials(result: Result, trials: Sequence[Found]) -> tuple[list[str], list[list[str]]]:
    """Headers and cells of some trials, with short names of their keys."""
    written = written_of(result)
    names = short_names(list(dict.fromkeys(key for trial in trials for key, _ in _values(trial))))
    body = []
    for trial in trials:
        figures = trial["figures"]
        speed = f"{figures['speedup']:.2f}{' †' if figures['caveat'] else ''}"
        values = "  ".join(f"{names[key]}={value}" for key, value in _values(trial))
        body.append([str(trial["number"]), _change(figures, written), speed, values])
    return ["trial", written.change_title, "speedup", "values"], body


def _values(trial: Found) -> list[tuple[str, str]]:
    parted = (override.partition("=") for override in trial["overrides"])
    return [(key, value) for key, _, value in parted]


def _corrected(result: Result) -> str:
    return f", corrected for {result['tested']} variants" if result["tested"] > 1 else ""


def _volumes(volumes: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {volume:.4g}" for name, volume in volumes.items())


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
