"""Discrete events: requests wait in one line, replicas take batches from its front.

A batch starts when a replica is free and either the largest batch is complete or its first request has waited long
enough. Requests that wait longer than the timeout leave. Replicas come after a cold start, and go when they are idle.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import numpy as np

from optkit.costs.policies import Autoscaled, Fixed, Policy, Scaler
from optkit.costs.served import Served, steps
from optkit.costs.service import TimeOf
from optkit.costs.traffic import Traffic

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Batching:
    """How requests become batches.

    Attributes:
        max_batch: the most requests in a batch.
        max_wait_s: how long a request waits for others.
    """

    max_batch: int = 1
    max_wait_s: float = 0.0


def simulate(
    traffic: Traffic,
    time: TimeOf,
    policy: Policy,
    batching: Batching,
    cold_start_s: float = 0.0,
    timeout_s: float = TIMEOUT_S,
) -> Served:
    """Serves a stream of requests.

    Args:
        traffic: the requests.
        time: of batches, from `Service.bind`.
        policy: how many replicas there are.
        batching: how requests become batches.
        cold_start_s: from the decision to start a replica to its first batch.
        timeout_s: requests leave that have waited longer.
    """
    line = _Line(traffic, time, batching, timeout_s)
    if isinstance(policy, Fixed):
        line.free = [0.0] * policy.replicas
        line.changed = [(0.0, policy.replicas)]
        line.serve(math.inf)
    else:
        _autoscale(line, policy, cold_start_s)
    return line.served()


class _Line:
    """The waiting requests, and the replicas."""

    def __init__(self, traffic: Traffic, time: TimeOf, batching: Batching, timeout_s: float):
        self.traffic, self.time, self.batching, self.timeout_s = traffic, time, batching, timeout_s
        self.arrivals: list[float] = traffic.arrivals.tolist()
        self.next = 0  # the first request that waits
        self.free: list[float] = []  # a heap: when each replica is free
        self.starting: list[float] = []  # of those, when replicas that start are ready
        self.changed: list[tuple[float, int]] = []  # replicas that came or went
        self.starts: list[float] = []
        self.ends: list[float] = []
        self.firsts: list[int] = []
        self.counts: list[int] = []
        self.gone: list[tuple[int, int]] = []  # requests that left, from and up to

    def serve(self, until: float) -> None:
        """Starts every batch that begins before a time."""
        arrivals, free, time, timeout = self.arrivals, self.free, self.time, self.timeout_s
        max_batch, max_wait = self.batching.max_batch, self.batching.max_wait_s
        starts, ends, firsts, counts = self.starts, self.ends, self.firsts, self.counts
        first, total = self.next, len(arrivals)
        while first < total and free:
            arrival, start = arrivals[first], free[0]
            if max_batch > 1 and max_wait > 0.0:
                last = first + max_batch - 1
                closes = arrival + max_wait
                if last < total and arrivals[last] < closes:
                    closes = arrivals[last]
                if closes > start:
                    start = closes
            elif arrival > start:
                start = arrival
            if start >= until:
                break
            if start - arrival > timeout:
                stay = bisect_left(arrivals, start - timeout, first, total)
                self.gone.append((first, stay))
                first = stay
                continue
            size = 1
            if max_batch > 1:
                size = bisect_right(arrivals, start, first, min(first + max_batch, total)) - first
            end = start + time(first, size)
            heapq.heapreplace(free, end)
            starts.append(start)
            ends.append(end)
            firsts.append(first)
            counts.append(size)
            first += size
        self.next = first

    def start(self, now: float, ready: float) -> None:
        """Starts a replica."""
        self.changed.append((now, 1))
        self.starting.append(ready)
        heapq.heappush(self.free, ready)

    def stop(self, now: float) -> None:
        """Stops a replica: one that still starts, or the one that is free first, when it is."""
        if self.starting:
            self.free.remove(self.starting.pop())
            heapq.heapify(self.free)
            self.changed.append((now, -1))
        else:
            self.changed.append((max(now, heapq.heappop(self.free)), -1))

    def served(self) -> Served:
        starts, ends = np.array(self.starts), np.array(self.ends)
        firsts, counts = np.array(self.firsts, np.int64), np.array(self.counts, np.int64)
        latency = np.full(len(self.arrivals), np.inf)
        which = np.repeat(firsts - np.concatenate(([0], np.cumsum(counts)[:-1])), counts) + np.arange(counts.sum())
        latency[which] = np.repeat(ends, counts) - self.traffic.arrivals[which]
        changes, replicas = steps(self.changed)
        batches = np.bincount(counts, minlength=self.batching.max_batch + 1)
        return Served(latency, self.traffic.seconds, batches, float((ends - starts).sum()), changes, replicas)


class _InProgress:
    """The mean number of requests in progress between two looks."""

    def __init__(self, line: _Line):
        self.line = line
        self._sums = np.concatenate(([0.0], np.cumsum(line.traffic.arrivals))).tolist()
        self._known, self._gone, self._done, self._done_sum = 0, 0, 0, 0.0
        self._running: list[tuple[float, int]] = []
        self._last, self._area = 0.0, 0.0

    def mean(self, now: float) -> float:
        """Since the last look, of batches that have begun and requests that have arrived before now."""
        line = self.line
        self._running += zip(line.ends[self._known :], line.counts[self._known :], strict=True)
        self._known = len(line.ends)
        for low, high in line.gone[self._gone :]:
            self._running += [(line.arrivals[n] + line.timeout_s, 1) for n in range(low, high)]
        self._gone = len(line.gone)
        for end, size in self._running:
            if end <= now:
                self._done += size
                self._done_sum += size * end
        self._running = [one for one in self._running if one[0] > now]
        arrived = bisect_right(line.arrivals, now)
        area = arrived * now - self._sums[arrived] - (self._done * now - self._done_sum)
        mean = (area - self._area) / (now - self._last)
        self._last, self._area = now, area
        return max(mean, 0.0)


def _autoscale(line: _Line, policy: Autoscaled, cold_start_s: float) -> None:
    """Serves, and decides on the number of replicas from time to time."""
    scaler, in_progress = Scaler(policy), _InProgress(line)
    current = _first_replicas(line, policy)
    line.free, line.changed = [0.0] * current, [(0.0, current)]
    now = 0.0
    while now < line.traffic.seconds:
        now += policy.sync_s
        if not current and _wakes(line, policy) < now:
            woken = _wakes(line, policy)
            line.start(woken, woken + cold_start_s)
            current = 1
        line.serve(now)
        line.starting = [ready for ready in line.starting if ready > now]
        load = in_progress.mean(now)
        if not current:
            continue
        wanted = scaler.decide(now, current, load)
        if not policy.min_replicas and _idle_since(line, now) <= now - policy.cooldown_s:
            wanted = 0
        for _ in range(wanted - current):
            line.start(now, now + cold_start_s)
        for _ in range(current - wanted):
            line.stop(now)
        current = wanted
    if not line.free:
        line.free = [now + cold_start_s]
    line.serve(math.inf)


def _first_replicas(line: _Line, policy: Autoscaled) -> int:
    """What the first minutes ask for: the service has run before."""
    minutes = policy.down_window_s or policy.sync_s
    arrived = bisect_right(line.arrivals, minutes)
    in_progress = arrived / minutes * line.time(0, 1)
    return max(1, policy.min_replicas, min(policy.max_replicas, math.ceil(in_progress / policy.target)))


def _wakes(line: _Line, policy: Autoscaled) -> float:
    """When a service without replicas notices its next request."""
    if line.next >= len(line.arrivals):
        return math.inf
    arrival = line.arrivals[line.next]
    return math.ceil(arrival / policy.poll_s) * policy.poll_s if policy.poll_s else arrival


def _idle_since(line: _Line, now: float) -> float:
    """Since when nothing is in progress; now if something is."""
    waiting = line.next < len(line.arrivals) and line.arrivals[line.next] <= now
    return now if waiting else max(line.free) if line.free else now
