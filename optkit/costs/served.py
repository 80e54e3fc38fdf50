"""What came of a stream of requests: latencies, and the replicas that there were."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from optkit.costs.traffic import Times


@dataclass(frozen=True)
class Served:
    """What came of a stream of requests.

    Attributes:
        latency: of each request, waiting and service, s, ``(N,)``; infinite where it left.
        seconds: how long the traffic lasted.
        batches: how many batches there were of each size, ``(max_batch + 1,)``.
        busy_s: replica-seconds of service.
        changes: when the number of replicas changed, s; the first is 0.
        replicas: how many there are from then on, starting ones included.
        periods: seconds of each time that a serverless instance was busy without a break; None for replicas.
    """

    latency: Times
    seconds: float
    batches: NDArray[np.int64]
    busy_s: float
    changes: Times
    replicas: NDArray[np.int64]
    periods: Times | None = None

    @property
    def lost(self) -> int:
        """Requests that left without an answer."""
        return int(np.isinf(self.latency).sum())

    def late(self, target_s: float) -> int:
        """Requests that were answered after the target."""
        return int((np.isfinite(self.latency) & (self.latency > target_s)).sum())

    def quantile(self, level: float) -> float:
        """Of the latency of all requests, s: the smallest that so large a share does not exceed."""
        place = min(self.latency.size - 1, math.ceil(level * self.latency.size) - 1)
        return float(np.partition(self.latency, place)[place])

    @property
    def replica_s(self) -> float:
        """Replica-seconds while the traffic lasted."""
        return self.machine_s(1)

    @property
    def utilization(self) -> float:
        """The share of replica-seconds that was service."""
        return self.busy_s / self.replica_s if self.replica_s else 0.0

    def machine_s(self, per_machine: int) -> float:
        """Seconds of machines that hold so many replicas each, while the traffic lasted."""
        starts = np.minimum(self.changes, self.seconds)
        lasts = np.diff(np.append(starts, self.seconds))
        return float((np.ceil(self.replicas / per_machine) * lasts).sum())

    def replicas_at(self, times: Times) -> NDArray[np.int64]:
        """How many replicas there are at these times."""
        return self.replicas[np.searchsorted(self.changes, times, side="right") - 1]


def steps(changed: list[tuple[float, int]]) -> tuple[Times, NDArray[np.int64]]:
    """When a number changes, each time once and from 0 on, and what it is from then on."""
    by_time: dict[float, int] = {0.0: 0}
    for time, change in sorted(changed):
        by_time[time] = by_time.get(time, 0) + change
    return np.array(list(by_time)), np.array(list(accumulate(by_time.values())), np.int64)
