"""``optkit search``: the cheapest variants of a recipe within a loss."""

from __future__ import annotations

import click

from optkit.commands import options
from optkit.core.errors import UserError

COSTS = ("latency", "size", "memory", "macs", "energy", "cost")
SAMPLERS = ("tpe", "nsga2", "random")
NAMED = ("space", "control")  # arguments that are the search's, and no overrides


@click.command(context_settings=options.ANYWHERE, short_help="Search RECIPE for its cheapest variants.")
@click.argument("recipe")
@options.overrides
@click.option("--max-drop", type=float, metavar="LOSS", help="The largest loss; 0.5 is half a point of accuracy.")
@click.option("--min-speedup", type=float, metavar="TIMES", help="Over the baseline on the reference engine.")
@click.option("--minimize", multiple=True, type=click.Choice(COSTS), help="May be repeated. Default: latency.")
@click.option("--trials", type=int, metavar="N", help="Of all processes together. Default: 30, if no hours are given.")
@click.option("--hours", type=float, metavar="H", help="In which this process begins trials.")
@click.option("--sampler", type=click.Choice(SAMPLERS), default="tpe", show_default=True)
@click.option(
    "--engine",
    default="best",
    show_default=True,
    help="Whose figures count; best: the fastest of each variant.",
)
@click.option("--front", type=int, default=8, show_default=True, help="Variants to measure in the end, at most.")
@click.option("--study", metavar="NAME", help="Default: the recipe's name and a digest of what is searched.")
@click.option("--storage", metavar="URL", help="A database that workers share. Default: SQLite in the search's folder.")
@click.option("--traffic", metavar="SPEC", help="Of --minimize cost: a log, a CSV file, or poisson:rate=20/s.")
@click.option("--prices", metavar="FILE", help="Of --minimize cost: a price list in YAML.")
@click.option("--p99", metavar="TIME", help="Of --minimize cost: the target of waiting and service, such as 50ms.")
@options.quiet
@options.debug
def search(
    recipe: str,
    arguments: tuple[str, ...],
    max_drop: float | None,
    min_speedup: float | None,
    minimize: tuple[str, ...],
    trials: int | None,
    hours: float | None,
    sampler: str,
    engine: str,
    front: int,
    study: str | None,
    storage: str | None,
    traffic: str | None,
    prices: str | None,
    p99: str | None,
    quiet: bool,
    debug: bool,
) -> None:
    """Search the variants of RECIPE for the cheapest within a loss, and measure the best on test.

    \b
    ARGUMENTS are overrides, as for run. space=FILE says which values are
    tried; without it the space for the model's kind is taken (see
    docs/search.md). control=random compares with as many random trials.
    The same command continues a search. With one --storage several
    processes and machines share the trials.
    log=json prints messages as JSON lines.
    """
    _, overrides = options.begin_messages(arguments, debug, quiet)
    named, overrides = _named(overrides)
    from optkit.report.search import search_text
    from optkit.report.tables import terminal_width
    from optkit.searches.search import search as search_recipe

    done = search_recipe(
        recipe, *overrides, space=named.get("space"), control=named.get("control"), max_drop=max_drop,
        min_speedup=min_speedup, minimize=minimize or ("latency",), trials=trials, hours=hours, sampler=sampler,
        engine=engine, front=front, study=study, storage=storage,
        traffic=traffic, prices=prices, p99=p99,
    )  # fmt: skip
    click.echo(search_text(done.result, terminal_width()))
    click.echo(f"search folder: {done.folder}\nall trials: {done.folder / 'search.md'}")


def _named(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """The search's own arguments, and the overrides."""
    named, overrides = {}, []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key in NAMED and equals:
            named[key] = value
        elif argument.startswith("-"):
            raise UserError("a search has no such option", key=argument, fix="see optkit search --help")
        else:
            overrides.append(argument)
    return named, overrides
