"""``optkit measure``: the variants of a run, evaluated and timed again."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from optkit.commands import options
from optkit.core.logs import RUN_LOG, log_file


@click.command(context_settings=options.ANYWHERE, short_help="Evaluate and time the variants of a RUN again.")
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@options.overrides
@click.option(
    "--rows",
    help="all, unmeasured, marked, or variants such as 2-recover,3-quantize. Default: unmeasured if any is, else all.",
)
@options.quiet
@options.debug
def measure(run_folder: Path, arguments: tuple[str, ...], rows: str | None, quiet: bool, debug: bool) -> None:
    """Evaluate and time the variants of the RUN folder again, without making them.

    \b
    A run with measure=later is measured for the first time. Of a folder
    of runs, or of a sweep, all are measured that are not measured yet.
    --rows marked times the rows again whose timing cannot be trusted.
    ARGUMENTS are overrides of measure, engines, task and threads, such as
    measure.seconds=20 'measure.batch_sizes=[64]' +engine@engines.openvino=openvino.
    Reports show each figure as it was last measured; the ledger keeps all.
    log=json prints messages as JSON lines.
    """
    messages, overrides = options.begin_messages(arguments, debug, quiet)
    from optkit.core import ledger
    from optkit.core.errors import UserError
    from optkit.launch import launch

    if found := {"-m", "--multirun"}.intersection(overrides):
        raise UserError("optkit measure measures one run", key=found.pop(), fix="leave it out")
    runs = [run for run in ledger.runs_of(run_folder) if ledger.unmeasured(run)] if rows is None else []
    for folder in runs or [ledger.one_run(run_folder)]:
        ledger.variants_of(folder)
        launch(str(folder / "recipe.yaml"), overrides, partial(_measure_run, folder=folder, names=rows), messages)


def _measure_run(cfg: Any, folder: Path, names: str | None) -> None:
    """One composed recipe: measure its variants in a run's folder again, then say what the run shows now."""
    from optkit.recipe.compose import to_recipe, to_tracker
    from optkit.report import summarize, write_report
    from optkit.report.selection import SIZES, changed_keys, select

    recipe, tracker = to_recipe(cfg), to_tracker(cfg)
    changed = changed_keys(folder, recipe.text)
    from optkit.remeasure import configured, measure_again

    within = configured(recipe) if changed.intersection(SIZES) else None
    with log_file(folder / RUN_LOG):
        measure_again(folder, recipe, select(folder, names, within))
        write_report(folder)
    click.echo(summarize(folder), nl=False)
    if tracker is not None:
        from optkit.report.trackers import send

        send(folder, tracker)
