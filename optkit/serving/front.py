"""What a request takes besides the model: the network, HTTP, and the server's own processes."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# how a server is measured before the traffic: by requests one by one with pauses, then with so many always under way
WARM, ALONE, PAUSE_S = 20, 100, 0.02
ALONE_S, FEWEST_ALONE = 10.0, 5  # a slow server gets fewer requests
UNDER_WAY, BUSY_S, FEWEST = (2, 4, 8, 16), 2.0, 4
ROUND_S = 2.0  # longest that so many requests may take one after another
FULL = 0.9  # a model that is busy for so much of the time may be what requests wait for


@dataclass(frozen=True)
class Unloaded:
    """What a server did before the traffic.

    Attributes:
        alone: latencies of requests that were sent one after another, s, ``(N,)``.
        busy: ``(n, answers a second)`` while n requests were always under way.
        replicas: how many ran then, of a server that scales.
    """

    alone: NDArray[np.float64]
    busy: Sequence[tuple[int, float]]
    replicas: int | None = None


@dataclass(frozen=True)
class Front:
    """The station before the model. Requests share it, and slow one another down.

    Where the processes of a server and its clients share the cores of a machine, two requests take longer than one.
    How much longer is measured, so that this is the flow-equivalent server of Chandy, Herzog and Woo (1975).

    Attributes:
        alone_s: what a request takes there alone, s, ``(N,)``.
        sharing: numbers of requests in it, rising from 1, ``(K,)``.
        slower: how many times as long as alone a request takes with so many in it, ``(K,)``.
    """

    alone_s: NDArray[np.float64]
    sharing: NDArray[np.float64]
    slower: NDArray[np.float64]

    @classmethod
    def of(cls, unloaded: Unloaded, model_alone_s: float, model_each_s: float) -> Front:
        """What a server's latencies have besides the model.

        Args:
            unloaded: the latencies.
            model_alone_s: what a request alone takes in the model.
            model_each_s: what all replicas together take for a request. Where the model is always busy, nothing is
                learned of the front.
        """
        alone = np.maximum(unloaded.alone - model_alone_s, 0.0)
        typical = float(alone.mean())
        sharing, slower = [1.0], [1.0]
        for under_way, rate in unloaded.busy:
            use = rate * model_each_s
            if use > FULL or typical == 0.0:
                break
            in_model = rate * (model_alone_s + model_each_s * use / (2 * (1 - use)))  # Little's law, M/D/1
            here = under_way - in_model
            if here > sharing[-1]:
                sharing.append(here)
                slower.append(max(slower[-1], here / rate / typical))
        return cls(alone, np.array(sharing), np.array(slower))

    def slowdown(self, count: int) -> float:
        """How many times as long as alone a request takes with so many in the station; beyond those measured, in
        proportion."""
        if count > self.sharing[-1] and self.sharing.size > 1:
            return float(self.slower[-1] * count / self.sharing[-1])
        return float(np.interp(count, self.sharing, self.slower))

    def latencies(self, arrivals: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
        """What requests take in it, s, ``(N,)``, of when they arrive, in order; their work is drawn from a seed."""
        work = self.alone_s[np.random.default_rng(seed).integers(self.alone_s.size, size=arrivals.size)]
        found = np.zeros(arrivals.size)
        inside: list[tuple[float, int]] = []  # the work that each request has been offered when it is done
        offered = now = 0.0
        for place, arrival in enumerate([*arrivals.tolist(), np.inf]):
            while inside:
                slower = self.slowdown(len(inside))
                done, first = inside[0]
                end = now + (done - offered) * slower
                if end > arrival:
                    offered += (arrival - now) / slower
                    break
                heapq.heappop(inside)
                offered, now, found[first] = done, end, end - arrivals[first]
            now = arrival
            if place < arrivals.size:
                heapq.heappush(inside, (offered + float(work[place]), place))
        return found
