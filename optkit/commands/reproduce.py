"""``optkit reproduce``: a run, run anew and compared."""

from __future__ import annotations

import json
from pathlib import Path

import click

from optkit.commands import options

NOT_REPRODUCED = 3  # exit code of a reproduction whose results differ


@click.command(context_settings=options.ANYWHERE, short_help="Run a RUN's recipe anew, and compare the records.")
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@options.overrides
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="A new folder for the new run.")
@click.option("--any-data", is_flag=True, help="Go on with other data or checkpoints than the run's.")
@options.table_or_json
@options.quiet
@options.debug
def reproduce(
    run_folder: Path,
    arguments: tuple[str, ...],
    out: Path | None,
    any_data: bool,
    format_: str,
    quiet: bool,
    debug: bool,
) -> None:
    """Run the recipe of a RUN folder anew, and compare each record with the new one.

    \b
    The folder may be a copy, moved or on another machine. Nothing that the
    run made is used again. Data and checkpoints must be the run's.
    ARGUMENTS are overrides, such as task.path=DIR where the data lie here.
    log=json prints messages as JSON lines.

    \b
    Exit code 0: the answers of each test example, the costs and the
    speedups are the run's. 3: something differs, and is named.
    """
    _, overrides = options.begin_messages(arguments, debug, quiet)
    from optkit.reproduction import reproduce as reproduce_run

    done = reproduce_run(run_folder, *overrides, out=out, any_data=any_data)
    click.echo(json.dumps(done.to_json(), indent=1) if format_ == "json" else repr(done).rstrip())
    if not done.equal:
        raise click.exceptions.Exit(NOT_REPRODUCED)
