"""``optkit report``: the results of runs."""

from __future__ import annotations

from pathlib import Path

import click

from optkit.commands import options

FORMATS = ("table", "md", "csv", "json", "latex", "html")


@click.command(short_help="Show the results in RUN folders.")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--format", "format_", type=click.Choice(FORMATS), default="table", show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="Write the report to this file.")
@click.option(
    "--p99-limit",
    type=click.FloatRange(0, min_open=True),
    metavar="MS",
    help="Name the largest batch size within this p99 latency, instead of measure.p99_limit_ms.",
)
@click.option("--over", metavar="KEY", help="Show means over the runs that differ in this key only, such as seed.")
@click.option("--wide", is_flag=True, help="Show every column of the table, however narrow the terminal is.")
@options.tracebacks
def report(
    runs: tuple[str, ...],
    format_: str,
    output: Path | None,
    p99_limit: float | None,
    over: str | None,
    wide: bool,
) -> None:
    """Show the results in RUN folders: as a table, Markdown, CSV, LaTeX or JSON rows, or a page for a browser.

    \b
    A RUN may be a folder of runs, such as that of a sweep: there is a
    column for each key in which their recipes differ.

    \b
    The page (html) is one file that opens offline; without --output
    it becomes report.html in the first RUN folder.
    """
    from optkit.report import render, save_report

    folders = [Path(r) for r in runs]
    if output is None and format_ != "html":
        click.echo(render(folders, format_, p99_limit, wide, over), nl=False)
    else:
        click.echo(save_report(folders, format_, output, p99_limit, wide, over))
