"""The page's sections: each asks a question of the runs, and shows the figures that answer it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from optkit.report.caveats import MARK
from optkit.report.page.ablation_figures import ablation_figures
from optkit.report.page.content import Figure, Group, Section, Table
from optkit.report.page.cost_figures import cost_figures
from optkit.report.page.engine_figures import engine_figures
from optkit.report.page.latency_figures import latency_figures
from optkit.report.page.layer_figures import layer_figures
from optkit.report.page.runs import ShownRun
from optkit.report.page.search_figures import search_figures
from optkit.report.page.serving_figures import serving_figures
from optkit.report.page.step_figures import step_figures
from optkit.report.page.sweep_figures import sweep_figures
from optkit.report.page.tradeoff_figures import tradeoff_figures
from optkit.report.tables import cells

UNFOLDED = 3  # up to so many runs have their own figures in sight
LEADS = {
    "techniques": "Each bar goes from where a step's parent stood to where the step brought it, so every "
    "technique is charged "
    "for itself. The whiskers are 95% intervals of where it ended.",
    "trade-off": "Up and to the left is better; against tokens a second, up and to the right. "
    "The dashed line is the front: nothing else is at least as good "
    "in both. Bars "
    "are 95% intervals. Latency is the baseline's over the speedup, so that a machine that drifted does not mislead.",
    "search": "Each point is a trial. Its figures are of the validation split, by which the search chose. The variants "
    "of the front were measured once on the recipe's own split; their intervals are corrected for how many they are.",
    "sweep": "Each run of the sweep at the value of the key; the figures are of the largest setting.",
    "attribution": "Each technique's share of what the whole chain changed, over chains with and without it; "
    "the shares add "
    "up (quality) or multiply (costs) to the whole where they are Shapley values. Whiskers are 95% intervals.",
    "engines": "How many times as fast as the baseline on PyTorch eager at the same batch size. The first row is "
    "what the "
    "engine brings by itself; a gap is a variant that an engine does not run.",
    "latency": "Each line is a variant on an engine, from its smallest batch to its largest: up is more examples "
    "or tokens a second, left is less waiting. Latencies are as they were measured; variants were timed minutes apart.",
    "layers": "One group of units at a time loses its lowest-ranked; a figure stands at the share removed, "
    "darker where it "
    "harms more.",
    "costs": "What the stages took, and how many examples must be served until that is saved again. Assumed: a "
    "second of a "
    "stage costs as much as a second of serving, on this machine; against the baseline on the same engine, whose own "
    "training is not charged.",
    "serving": "Dollars under simulated traffic, from measured service times, at the prices and for the latency target "
    "that the figures name. Whiskers are the 95% intervals of the service times.",
    "figures": "Speedup and change are against the baseline (step 0) on PyTorch eager in fp32 at the same batch "
    "size, timed in the same rounds; brackets are 95% intervals; a dash was not measured; "
    f"{MARK} marks timings that cannot be trusted.",
}


def sections(runs: Sequence[ShownRun]) -> list[Section]:
    """All sections that these runs have figures for."""
    together, swept = tradeoff_figures(runs), sweep_figures(runs)
    made = [
        _section("techniques", "What each technique bought", _per_run(runs, step_figures)),
        _section("trade-off", "Quality against speed and size", [Group("", together)] if together else []),
        _section("search", "What the search found", _once(runs, "search", search_figures)),
        _section("sweep", "Against the keys in which the runs differ", [Group("", swept)] if swept else []),
        _section("attribution", "What each technique is worth by ablation", _once(runs, "ablation", ablation_figures)),
        _section("engines", "Engines and batch sizes", _per_run(runs, engine_figures)),
        _section("latency", "Latency and throughput", _per_run(runs, latency_figures)),
        _section("layers", "What the layers are worth", _per_run(runs, layer_figures)),
        _section("costs", "Stage costs and break-even", _per_run(runs, cost_figures)),
        _section("serving", "Cost of serving", _per_run(runs, serving_figures)),
        _section("figures", "All figures", _per_run(runs, _every_row)),
    ]
    return [section for section in made if section.groups]


def _section(key: str, title: str, groups: list[Group]) -> Section:
    return Section(key, title, LEADS[key], groups)


def _per_run(runs: Sequence[ShownRun], figures: Callable[[ShownRun], list[Figure]]) -> list[Group]:
    found = [(run, figures(run)) for run in runs]
    return [Group(run.name if len(runs) > 1 else "", made, len(runs) <= UNFOLDED) for run, made in found if made]


def _once(runs: Sequence[ShownRun], study: str, figures: Callable[[ShownRun], list[Figure]]) -> list[Group]:
    """Ablations or searches, each once: several runs lie in one study."""
    first = {str(found): run for run in reversed(runs) if (found := getattr(run, study)) is not None}
    return _per_run([run for run in runs if run in first.values()], figures)


def _every_row(run: ShownRun) -> list[Figure]:
    headers, body = cells(run.rows)
    return [Figure("Every measured row", Table(headers, body, frozenset({0, 1})), wide=True)]
