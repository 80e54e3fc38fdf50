"""``optkit diff``: two runs compared."""

from __future__ import annotations

import json
from pathlib import Path

import click

from optkit.commands import options


@click.command(short_help="Compare two RUN folders.")
@click.argument("first", type=click.Path(path_type=Path), metavar="RUN")
@click.argument("second", type=click.Path(path_type=Path), metavar="RUN")
@options.table_or_json
@options.tracebacks
def diff(first: Path, second: Path, format_: str) -> None:
    """Compare two RUN folders: their recipes, and each variant with the variant of the same name."""
    from optkit.report.diff import diff_runs, print_diff

    found = diff_runs(first, second)
    if format_ == "json":
        click.echo(json.dumps(found.to_json(), indent=1))
    else:
        print_diff(found)
