"""What this machine has, and which engines work on it."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from optkit.core.compat.versions import unsupported
from optkit.core.cores import default_threads
from optkit.core.environment import cpu, has_int8_dot_product, versions
from optkit.engines import ENGINES


def print_doctor() -> None:
    """Prints versions, the processor, threads, and for each engine whether it works here, and why not."""
    console = Console()
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_row("python", sys.version.split()[0])
    for name, version in versions().items():
        facts.add_row(name, version or "not installed")
    machine = cpu()
    if outside := unsupported():
        facts.add_row("not supported", ", ".join(outside))
    facts.add_row("processor", machine["name"])
    facts.add_row("threads", str(default_threads()))
    facts.add_row("vector instructions", " ".join(machine["isa"]) or "none that matter here")
    facts.add_row("GPU", _gpu())
    for name, engine in ENGINES.items():
        reason = engine().unavailable()
        facts.add_row(f"engine {name}", "works" if reason is None else f"does not work: {reason}")
    if not has_int8_dot_product({"cpu": machine}):
        facts.add_row("int8", "this processor has no int8 dot product: expect little from int8")
    console.print(facts)


def print_peaks(again: bool = False) -> None:
    """Prints this machine's peaks at as many threads as a run takes by itself; ``again`` measures them anew."""
    from optkit.core.environment import available_cores
    from optkit.measure.peaks import PRODUCTS, peaks, peaks_file

    threads = available_cores()
    kept = peaks_file(threads).is_file() and not again
    found = peaks(threads, again)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for header in (f"peak at {threads} threads", "measured"):
        table.add_column(header)
    for name in PRODUCTS:
        table.add_row(name, f"{found[name]:,.1f} billion operations/s" if name in found else "no kernels here")
    table.add_row("copying memory", f"{found['memory_gb_s']:,.1f} GB/s")
    console = Console(soft_wrap=True)
    console.print(table)
    when = "measured before; --remeasure measures again" if kept else "measured now, and kept for the rooflines of runs"
    console.print(f"{when}: {peaks_file(threads)}", highlight=False, markup=False)


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
