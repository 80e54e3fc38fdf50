"""``optkit ablate``: what each technique of a recipe contributes."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from optkit.commands import options


@click.command(context_settings=options.ANYWHERE, short_help="Show what each stage of RECIPE contributes.")
@click.argument("recipe")
@options.overrides
@click.option("--orders", is_flag=True, help="Also run the other orders that the stages allow.")
@click.option("--seeds", type=int, default=1, show_default=True, help="How many times to train and measure everything.")
@click.option(
    "--engine",
    default="best",
    show_default=True,
    help="Whose figures count; best: the fastest of each variant.",
)
@click.option(
    "--subsets",
    type=click.Choice(("auto", "all", "leave-one-out")),
    default="auto",
    show_default=True,
    help="Which chains are run; auto: all subsets of up to 5 techniques, leave-one-out of more.",
)
@options.quiet
@options.debug
def ablate(
    recipe: str,
    arguments: tuple[str, ...],
    orders: bool,
    seeds: int,
    engine: str,
    subsets: str,
    quiet: bool,
    debug: bool,
) -> None:
    """Run every subset of RECIPE's stages, and show what each technique contributes: Shapley values, interactions.

    \b
    ARGUMENTS are overrides, as for run. Stages that chains share at their
    start are made once. The same command continues an interrupted study.
    log=json prints messages as JSON lines.
    """
    messages, overrides = options.begin_messages(arguments, debug, quiet)
    from optkit.launch import launch

    chosen = ["--orders"] if orders else []
    chosen += [f"--seeds={seeds}"] if seeds != 1 else []
    chosen += [f"--engine={engine}"] if engine != "best" else []
    chosen += [f"--subsets={subsets}"] if subsets != "auto" else []
    arguments_again = ["ablate", recipe, *overrides, *chosen]
    command = shlex.join(["optkit", *arguments_again])

    def job(cfg: Any) -> Path:
        from optkit.recipe.compose import to_recipe

        built = to_recipe(cfg)
        from optkit.core.cache import write_text
        from optkit.report import read_rows, remedies
        from optkit.report.ablation import ablation_markdown
        from optkit.study.ablation import ablate as ablate_recipe

        done = ablate_recipe(built, orders=orders, seeds=seeds, engine=engine, subsets=subsets, command=command)
        text = ablation_markdown(done.result, read_rows([done.folder]))
        write_text(done.folder / "ablation.md", text)
        click.echo(text)
        click.echo(f"study folder: {done.folder}")
        for again in remedies([done.folder / run for run in done.result["runs"]]):
            click.echo(f"To time the marked rows again: {again} (then run the same ablation)")
        return done.folder

    launch(recipe, overrides, job, messages, command=arguments_again, options=chosen)
