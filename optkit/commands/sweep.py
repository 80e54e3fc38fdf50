"""``optkit sweep``: the jobs of a sweep shown, continued, cancelled."""

from __future__ import annotations

from pathlib import Path

import click

from optkit.commands import options

of_sweep = click.argument("folder", type=click.Path(path_type=Path), metavar="FOLDER")


@click.group(short_help="Show, continue or stop a sweep.")
def sweep() -> None:
    """Show, continue or stop a sweep: a run with -m, whose FOLDER is in out/sweeps."""


@sweep.command()
@of_sweep
@options.table_or_json
@options.tracebacks
def status(folder: Path, format_: str) -> None:
    """Show the jobs of a sweep, their states, and why a job failed."""
    from optkit.sweep.status import as_json, print_status

    if format_ == "json":
        click.echo(as_json(folder))
    else:
        print_status(folder)


@sweep.command(context_settings=options.ANYWHERE)
@of_sweep
@options.overrides
@options.quiet
@options.debug
@click.pass_context
def resume(ctx: click.Context, folder: Path, arguments: tuple[str, ...], quiet: bool, debug: bool) -> None:
    """Run the jobs of a sweep that are not finished, with the command that started it.

    \b
    Those are the waiting, failed, interrupted and cancelled ones.
    ARGUMENTS may name another launcher, such as
    hydra/launcher=parallel hydra.launcher.n_jobs=4, or fail_fast=true.
    log=json prints messages as JSON lines.
    """
    from optkit.sweep.status import command_of

    with command_of(folder, arguments) as command:
        flags = [*(["--quiet"] if quiet else []), *(["--debug"] if debug else [])]
        ctx.find_root().command.main(args=[*command, *flags], prog_name="optkit", standalone_mode=False)


@sweep.command()
@of_sweep
@options.debug
def cancel(folder: Path, debug: bool) -> None:
    """End the running jobs of a sweep, and mark the waiting ones as cancelled."""
    options.begin_messages((), debug, quiet=False)
    from optkit.core.errors import StageError
    from optkit.sweep.cancel import cancel as cancel_jobs
    from optkit.sweep.state import State, SweepFolder

    found = SweepFolder(folder)
    if left := cancel_jobs(found, "optkit sweep cancel"):
        raise StageError("; ".join(left))
    jobs = found.read()
    click.echo(f"{jobs.count(State.CANCELLED)} of {len(jobs.jobs)} jobs are cancelled: {folder}")
