"""What several commands share: their options, their overrides, and how their messages begin."""

from __future__ import annotations

from collections.abc import Sequence

import click

from optkit.core.logs import TEXT, Messages
from optkit.core.processes import launched

PASS_THROUGH = {"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": ["-h"]}
ANYWHERE = PASS_THROUGH | {"allow_interspersed_args": True, "help_option_names": ["-h", "--help"]}

overrides = click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
quiet = click.option("--quiet", is_flag=True, help="Show warnings and the result only.")
debug = click.option("--debug", is_flag=True, help="Show tracebacks.")
tracebacks = click.option(
    "--debug", is_flag=True, expose_value=False, help="Show tracebacks."
)  # read by cli.main alone
trust = click.option(
    "--trust", multiple=True, metavar="NAME", help="A package or module that may rebuild the model; repeatable."
)
table_or_json = click.option(
    "--format", "format_", type=click.Choice(("table", "json")), default="table", show_default=True
)


def begin_messages(arguments: Sequence[str], debug: bool, quiet: bool) -> tuple[Messages, list[str]]:
    """Begins a working command's messages as ``log=`` says; gives how they go, and the other arguments."""
    formats = [argument.removeprefix("log=") for argument in arguments if argument.startswith("log=")]
    rank, _ = launched()
    messages = Messages(
        quiet or rank > 0, formats[-1] if formats else TEXT, debug, of=f"[process {rank}] " if rank else ""
    )
    messages.begin()
    return messages, [argument for argument in arguments if not argument.startswith("log=")]
