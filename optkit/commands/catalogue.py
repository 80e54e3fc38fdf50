"""``optkit recipes`` and ``optkit stages``: what comes with optkit."""

from __future__ import annotations

import click

from optkit.commands import options


@click.command()
@options.tracebacks
def recipes() -> None:
    """List the recipes that come with optkit."""
    from optkit.recipe.compose import bundled_recipes
    from optkit.report.tables import print_pairs

    print_pairs(("recipe", "what it shows"), bundled_recipes())


@click.command(short_help="List the stages, with their parameters and defaults.")
@options.tracebacks
def stages() -> None:
    """List the stages that a chain can have, with parameters and defaults."""
    from optkit.recipe.compose import stage_catalogue
    from optkit.report.tables import print_stages

    print_stages(stage_catalogue())
