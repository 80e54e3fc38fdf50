"""``optkit run``: a recipe, or a sweep of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from optkit.commands import options
from optkit.core.processes import joined

RUN_FLAGS = ("--debug", "--quiet", "--dry-run", "--redefine")


@click.command(context_settings=options.PASS_THROUGH, add_help_option=False)
@click.argument("recipe", required=False)
@options.overrides
@click.pass_context
def run(ctx: click.Context, recipe: str | None, arguments: tuple[str, ...]) -> None:
    """Run RECIPE (a file, or a bundled name), or continue it.

    \b
    ARGUMENTS are Hydra's: overrides such as stages.prune.amount=0.6,
    -m for a sweep, --cfg job to see the composed recipe.
    --dry-run shows the jobs, their stages, and what they take.
    --redefine goes through a sweep again whose definition has changed.
    --quiet shows warnings and the result only, log=json prints
    messages as JSON lines, --debug shows tracebacks.

    \b
    On several devices: torchrun --nproc-per-node N -m optkit run RECIPE
    """
    if recipe is None or recipe in ("-h", "--help"):
        click.echo(ctx.get_help())
        ctx.exit(0 if recipe else 2)
    flags = {a for a in arguments if a in RUN_FLAGS}
    overrides = [a for a in arguments if a not in flags]
    messages, overrides = options.begin_messages(overrides, debug="--debug" in flags, quiet="--quiet" in flags)
    from optkit.launch import launch

    if "--dry-run" in flags:
        _preview(recipe, overrides)
        return
    command = ["run", recipe, *overrides]
    with joined():
        launch(recipe, overrides, _run_job, messages, command=command, redefine="--redefine" in flags)


def _run_job(cfg: Any) -> Path:
    """One composed recipe: run it, then print its table and the verdict on it; gives the folder of the run."""
    from optkit.runs import run_composed

    return run_composed(cfg, show=lambda done: click.echo(done, nl=False)).folder


def _preview(recipe: str, overrides: Sequence[str]) -> None:
    """Prints what a run or a sweep would make; makes nothing."""
    from optkit.launch.dry_run import dry_run

    preview = dry_run(recipe, overrides)
    click.echo(preview.text(), nl=False)
    preview.raise_mistakes()
