"""``optkit sensitivity``: what each layer of a recipe's baseline loses, by pruning or by int8."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from optkit.commands import options


@click.command(context_settings=options.ANYWHERE, short_help="Measure the loss of each layer.")
@click.argument("recipe")
@options.overrides
@click.option(
    "--metric",
    type=click.Choice(("loss", "metric")),
    default="loss",
    show_default=True,
    help="What is measured: the task's loss, or its first metric.",
)
@click.option(
    "--technique",
    type=click.Choice(("prune", "quantize")),
    default="prune",
    show_default=True,
    help="What is done to each layer.",
)
@options.quiet
@options.debug
def sensitivity(recipe: str, arguments: tuple[str, ...], metric: str, technique: str, quiet: bool, debug: bool) -> None:
    """Measure for each layer of RECIPE's baseline the loss on validation against the share removed.

    \b
    With --technique quantize: the error that int8 makes in each layer, as
    the recipe's first static quantization calibrates it.

    \b
    ARGUMENTS are overrides, as for run. Channels are ranked as the
    recipe's first structured pruning ranks them, on as many examples:
    stages.prune.sensitivity_examples=5000.
    log=json prints messages as JSON lines.
    """
    messages, overrides = options.begin_messages(arguments, debug, quiet)
    from optkit.launch import launch

    chosen = [f"--technique={technique}"] if technique != "prune" else []
    chosen += [f"--metric={metric}"] if metric != "loss" else []
    command = ["sensitivity", recipe, *overrides, *chosen]

    def job(cfg: Any) -> Path:
        return _measure_layers(cfg, technique, metric)

    launch(recipe, overrides, job, messages, command=command, options=chosen)


def _measure_layers(cfg: Any, technique: str, metric: str) -> Path:
    """One composed recipe: print the table of its baseline; JSON, and a picture of cuts, go into the run folder."""
    from optkit.core.errors import UserError
    from optkit.recipe.compose import to_recipe

    if technique == "quantize" and metric != "loss":
        raise UserError("int8 is told apart by the loss alone", key="--metric", value=metric, fix="leave --metric out")
    recipe = to_recipe(cfg)
    from optkit.core.extras import missing
    from optkit.core.task import SealedTask
    from optkit.pipeline import baseline
    from optkit.prune import StructuredPruning
    from optkit.quantize import StaticQuantization
    from optkit.recipe.plan import make_plan
    from optkit.report.heatmap import save_heatmap

    folder, module = baseline(make_plan(recipe))
    task = SealedTask(recipe.task)
    kind = StructuredPruning if technique == "prune" else StaticQuantization
    stages = (recipe.stages[name] for name in recipe.chain)
    stage = next((stage for stage in stages if isinstance(stage, kind)), kind())
    if isinstance(stage, StructuredPruning):
        cuts = stage.measure_sensitivity(module, task, recipe.seed, metric)
        cuts.save(folder / "sensitivity.json")
        if reason := missing("report"):
            logging.getLogger("optkit").info("no picture: %s", reason)
        else:
            save_heatmap(cuts, folder / "sensitivity.svg")
        summary = cuts.summary()
    else:
        costs = stage.measure_layers(module, task, recipe.seed)
        costs.save(folder / "sensitivity_int8.json")
        summary = costs.summary()
    click.echo(summary)
    click.echo(f"run folder: {folder}")
    return folder
