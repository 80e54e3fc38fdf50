"""Whether something else ran on the machine while it was measured."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

log = logging.getLogger(__name__)
STAT = Path("/proc/stat")
TOLERATED, TOLERATED_FOR_A_MOMENT = 0.15, 0.3
MOMENT_S = 0.5  # the kernel counts in ticks of 10 ms: of less time its counts say little


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


@dataclass(frozen=True)
class OtherLoad:
    """Cores that others kept busy while something was timed; None where that cannot be known.

    Attributes:
        mean: over the whole time.
        peak: in the busiest half second, so that a load that comes and goes is noticed.
    """

    mean: float | None
    peak: float | None

    @property
    def disturbs(self) -> bool:
        """Whether others kept more than 0.15 cores busy on the mean, or 0.3 for half a second; not if not known."""
        return (self.mean or 0.0) > TOLERATED or (self.peak or 0.0) > TOLERATED_FOR_A_MOMENT


class LoadWatch:
    """Reads the clocks every half second or so, from when it is made."""

    def __init__(self) -> None:
        self._marks = [Mark.now()]

    def look(self) -> None:
        """Reads the clocks if half a second went by since they were read."""
        if time.perf_counter() - self._marks[-1].wall >= MOMENT_S:
            self._marks.append(Mark.now())

    def load(self) -> OtherLoad:
        """The load from the first look up to now."""
        now = Mark.now()
        if len(self._marks) > 1 and now.wall - self._marks[-1].wall < MOMENT_S:
            self._marks.pop()
        marks = [*self._marks, now]
        moments = [b.others_since(a) for a, b in pairwise(marks)]
        peaks = [moment for moment in moments if moment is not None] if len(moments) > 1 else []
        mean = now.others_since(self._marks[0])
        return OtherLoad(mean, max(peaks, default=mean))


def _busy_seconds(stat: Path) -> float | None:
    """Seconds that all processors together were not idle since boot."""
    try:
        user, nice, system, _idle, _wait, irq, soft, steal = map(int, stat.read_text().split("\n", 1)[0].split()[1:9])
    except (OSError, ValueError) as error:
        log.debug("what else runs here is not known: %s", error)
        return None
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")
