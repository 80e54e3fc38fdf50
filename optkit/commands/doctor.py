"""``optkit doctor``: what works on this machine."""

from __future__ import annotations

import click

from optkit.commands import options


@click.command(short_help="Show versions, processor and usable engines.")
@click.option("--peaks", is_flag=True, help="Also show this machine's peaks, measured once and kept.")
@click.option("--remeasure", is_flag=True, help="Measure the peaks again, and show them.")
@options.tracebacks
def doctor(peaks: bool, remeasure: bool) -> None:
    """Show versions, processor and threads, and which engines work here."""
    from optkit.report.doctor import print_doctor, print_peaks

    print_doctor()
    if peaks or remeasure:
        print_peaks(remeasure)
