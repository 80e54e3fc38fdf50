"""Whether something else ran on the machine while it was measured."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")
TOLERATED = 0.15


@dataclass(frozen=True)
class Mark:
    """The clocks at one moment: wall, this process's processor seconds, and the whole machine's; None if not known."""

    wall: float
    own: float
    machine: float | None

    @classmethod
    def now(cls, stat: Path = STAT) -> Mark:
        return cls(time.perf_counter(), time.process_time(), _busy_seconds(stat))

    def others_since(self, earlier: Mark) -> float | None:
        """Cores that others kept busy meanwhile, time stolen by other virtual machines included."""
        if self.machine is None or earlier.machine is None or self.wall <= earlier.wall:
            return None
        busy = (self.machine - earlier.machine) - (self.own - earlier.own)
        return max(busy, 0.0) / (self.wall - earlier.wall)


def disturbed(others: float | None) -> bool:
    """Whether others kept more than 0.15 cores busy; what cannot be known is not called disturbed."""
    return others is not None and others > TOLERATED


def _busy_seconds(stat: Path) -> float | None:
    """Seconds that all processors together were not idle since boot."""
    try:
        user, nice, system, _idle, _wait, irq, soft, steal = map(int, stat.read_text().split("\n", 1)[0].split()[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")
