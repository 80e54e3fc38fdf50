"""What this machine has, and which engines work on it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from optkit.core.compat.versions import unsupported
from optkit.core.cores import default_threads
from optkit.core.engine import Engine, packages_of
from optkit.core.environment import cpu, has_int8_dot_product, versions
from optkit.core.errors import UserError
from optkit.core.plugins import Plugins
from optkit.engines import ENGINES
from optkit.quantize.graph.targets import INT8_TARGETS, Int8Target

T = TypeVar("T")


def print_doctor() -> None:
    """Prints versions, the processor, threads, and for each engine whether it works here, and why not."""
    console = Console()
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_row("python", sys.version.split()[0])
    engines, targets = _loaded(ENGINES), _loaded(INT8_TARGETS)
    packages = packages_of(kind for kind in engines.values() if not isinstance(kind, UserError))
    for name, version in versions(packages).items():
        facts.add_row(name, version or "not installed")
    machine = cpu()
    if outside := unsupported():
        facts.add_row("not supported", ", ".join(outside))
    facts.add_row("processor", machine["name"])
    facts.add_row("threads", str(default_threads()))
    facts.add_row("vector instructions", " ".join(machine["isa"]) or "none that matter here")
    facts.add_row("GPU", _gpu())
    for row in (*_rows(ENGINES, engines, _of_engine), *_rows(INT8_TARGETS, targets, _of_target)):
        facts.add_row(*row)
    if not has_int8_dot_product({"cpu": machine}):
        facts.add_row("int8", "this processor has no int8 dot product: expect little from int8")
    console.print(facts)


def print_peaks(again: bool = False) -> None:
    """Prints this machine's peaks at as many threads as a run takes by itself; ``again`` measures them anew."""
    from optkit.measure.peaks import PRODUCTS, peaks, peaks_file

    threads = default_threads().count
    kept = peaks_file(threads).is_file() and not again
    found = peaks(threads, again)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for header in (f"peak at {threads} threads", "measured"):
        table.add_column(header)
    for name in PRODUCTS:
        table.add_row(name, f"{found[name]:,.1f} billion operations/s" if name in found else "no kernels here")
    table.add_row("copying memory", f"{found['memory_gb_s']:,.1f} GB/s")
    table.add_row("reading memory", f"{found['read_gb_s']:,.1f} GB/s")
    console = Console(soft_wrap=True)
    console.print(table)
    when = "measured before; --remeasure measures again" if kept else "measured now, and kept for the rooflines of runs"
    console.print(f"{when}: {peaks_file(threads)}", highlight=False, markup=False)


def _loaded(known: Plugins[T]) -> Mapping[str, T | UserError]:
    """All objects of a kind; for those that cannot be used, the reason."""
    found: dict[str, T | UserError] = {}
    for name in known:
        try:
            found[name] = known[name]
        except UserError as error:
            found[name] = error
    return found


def _rows(
    known: Plugins[T], loaded: Mapping[str, T | UserError], describe: Callable[[T], str]
) -> Iterator[tuple[str, str]]:
    """A line for each object: what it is or why it does not work, and the package, unless that is optkit."""
    added = set(known.added())
    for name, found in loaded.items():
        text = f"does not work: {found.message}" if isinstance(found, UserError) else describe(found)
        package = f" (package {known.source(name)})" if name in added else ""
        yield f"{known.kind} {name}", escape(text + package)


def _of_engine(kind: type[Engine]) -> str:
    reason = kind().unavailable()
    return "works" if reason is None else f"does not work: {reason}"


def _of_target(target: Int8Target) -> str:
    return f"for {target.engine}: {'static and dynamic' if target.dynamic else 'static'}"


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
