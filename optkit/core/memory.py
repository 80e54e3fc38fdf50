"""Memory that this process may still take."""

from __future__ import annotations

import psutil

from optkit.core.cgroup import free_memory


def available_memory() -> int:
    """Bytes: what the machine has available, and no more than its control groups allow this process."""
    machine = int(psutil.virtual_memory().available)
    allowed = free_memory()
    return machine if allowed is None else min(machine, allowed)
