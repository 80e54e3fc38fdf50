"""What this machine has, and which engines work on it."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from optkit.core.environment import cpu, versions
from optkit.engines import ENGINES


def print_doctor() -> None:
    """Prints versions, the processor, threads, and for each engine whether it works here, and why not."""
    console = Console()
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_row("python", sys.version.split()[0])
    for name, version in versions().items():
        facts.add_row(name, version or "not installed")
    machine = cpu()
    facts.add_row("processor", machine["name"])
    facts.add_row("cores to use", str(machine["cores"]))
    facts.add_row("vector instructions", " ".join(machine["isa"]) or "none that matter here")
    facts.add_row("GPU", _gpu())
    for name, engine in ENGINES.items():
        reason = engine().unavailable()
        facts.add_row(f"engine {name}", "works" if reason is None else f"does not work: {reason}")
    if not {"avx512_vnni", "avx_vnni", "amx_int8"} & set(machine["isa"]):
        facts.add_row("int8", "this processor has no int8 dot product: expect little from int8")
    console.print(facts)


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
