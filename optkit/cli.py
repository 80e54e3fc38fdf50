"""The ``optkit`` command: its commands, and how it ends. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import click

from optkit.commands.ablate import ablate
from optkit.commands.catalogue import recipes, stages
from optkit.commands.cost import cost
from optkit.commands.diff import diff
from optkit.commands.doctor import doctor
from optkit.commands.export import export
from optkit.commands.loadtest import loadtest
from optkit.commands.measure import measure
from optkit.commands.push import push
from optkit.commands.report import report
from optkit.commands.reproduce import reproduce
from optkit.commands.run import run
from optkit.commands.search import search
from optkit.commands.sensitivity import sensitivity
from optkit.commands.serve import serve
from optkit.commands.store import store
from optkit.commands.sweep import sweep
from optkit.core.errors import OptkitError
from optkit.core.logs import complain
from optkit.core.processes import is_lost, launched, of_run, one_process_only

COMMANDS = (
    ablate, cost, diff, doctor, export, loadtest, measure, push, recipes, report, reproduce, run, search,
    sensitivity, serve, stages, store, sweep,
)  # fmt: skip


def _show_version(ctx: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from optkit.core.version import version

        click.echo(f"optkit, version {version()}")
        ctx.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Prune, distill and quantize PyTorch models, and measure on your engine what each step gains and costs."""
    if ctx.invoked_subcommand != "run":
        one_process_only(f"optkit {ctx.invoked_subcommand}")


for command in COMMANDS:
    cli.add_command(command)


def _unexpected(error: Exception) -> str:
    """An error that nobody foresaw, as one line."""
    first = (str(error).strip().splitlines() or ["no message"])[0]
    notes = "; ".join([*getattr(error, "__notes__", []), "--debug shows where"])
    text = "another process of the run ended without a word" if is_lost(error) else f"{type(error).__name__}: {first}"
    return f"{text} ({notes})"


def _end(text: str, code: int) -> int:
    """Says why the command ends, unless another process of the run has said it; gives the exit code."""
    from optkit.core.interruption import ends_now

    ends_now()
    speaks, code = of_run().last_word(code)
    if speaks:
        complain(f"process {of_run().rank}: {text}" if of_run().rank else text)
    return code


def main() -> NoReturn:
    """The ``optkit`` command."""
    from optkit.core.interruption import Ending, Interruption, told

    if not sys.flags.safe_path and not {"", os.getcwd()}.intersection(sys.path):
        sys.path.insert(0, os.getcwd())  # as under python -m: recipes name code that lies here
    ending = Ending()
    try:
        code = cli(prog_name="optkit", standalone_mode=False)
    except click.ClickException as error:
        if launched()[0] == 0:
            error.show()
        sys.exit(error.exit_code)
    except Interruption as error:
        sys.exit(ending.farewell(error))
    except Exception as error:
        # a signal may have come to all, and the others were the first to end
        if is_lost(error) and not of_run().can_ask() and (number := told()):
            sys.exit(ending.farewell(Interruption(number)))
        if "--debug" in sys.argv:
            raise
        if isinstance(error, OptkitError):
            sys.exit(_end(str(error), error.exit_code))
        sys.exit(_end(_unexpected(error), 1))
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
