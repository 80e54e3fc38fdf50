"""Discrete events of serverless instances, which come with requests and go when they are idle."""

from __future__ import annotations

import heapq
from collections import deque

import numpy as np

from optkit.costs.served import Served, steps
from optkit.costs.service import TimeOf
from optkit.costs.traffic import Traffic


def simulate_functions(
    traffic: Traffic, time: TimeOf, cold_start_s: float, keep_warm_s: float, concurrency: int = 1
) -> Served:
    """Serves a stream of requests on serverless instances.

    A request goes to the idle instance that was busy last. Without one it joins the instance that will be done first,
    if that holds fewer than ``concurrency`` requests, and is served after them. Otherwise a new instance starts.

    Args:
        traffic: the requests.
        time: of a request, from `Service.bind` with batches of 1.
        cold_start_s: from the request to the start of its service on a new instance.
        keep_warm_s: how long an idle instance stays.
        concurrency: how many requests an instance holds at once.
    """
    busy: list[tuple[float, int]] = []  # a heap: when an instance is done, and its number
    idle: list[tuple[float, int]] = []  # the one that was busy last at the end
    held: list[deque[float]] = []  # by instance, when its requests are done
    period: list[int] = []  # by instance, the number of its last period
    begins, ends, done, changed = list[float](), list[float](), list[float](), list[tuple[float, int]]()
    busy_s = 0.0
    for number, arrival in enumerate(traffic.arrivals.tolist()):
        while busy and busy[0][0] <= arrival:
            idle.append(heapq.heappop(busy))
        if idle and arrival - idle[-1][0] > keep_warm_s:
            changed += [(since + keep_warm_s, -1) for since, _ in idle]
            idle.clear()
        took = time(number, 1)
        busy_s += took
        if idle:
            _, instance = idle.pop()
            end = arrival + took
            heapq.heappush(busy, (end, instance))
            held[instance].clear()
        elif busy and concurrency > 1 and _has_room(held[busy[0][1]], arrival, concurrency):
            last, instance = busy[0]
            end = last + took
            heapq.heapreplace(busy, (end, instance))
            ends[period[instance]] = end
            held[instance].append(end)
            done.append(end)
            continue
        else:
            instance = len(held)
            end = arrival + cold_start_s + took
            heapq.heappush(busy, (end, instance))
            held.append(deque())
            period.append(0)
            changed.append((arrival, 1))
        held[instance].append(end)
        period[instance] = len(begins)
        begins.append(arrival)
        ends.append(end)
        done.append(end)
    changed += [(since + keep_warm_s, -1) for since, _ in (*idle, *busy)]
    changes, replicas = steps(changed)
    latency = np.array(done) - traffic.arrivals
    periods = np.array(ends) - np.array(begins)
    batches = np.array([0, len(traffic)])
    return Served(latency, traffic.seconds, batches, busy_s, changes, replicas, periods)


def _has_room(held: deque[float], now: float, most: int) -> bool:
    while held and held[0] <= now:
        held.popleft()
    return len(held) < most
