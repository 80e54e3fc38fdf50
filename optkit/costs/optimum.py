"""The search for what meets the latency target with the fewest resources: batch, wait, replicas, autoscaler."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from optkit.costs.policies import Autoscaled, Fixed
from optkit.costs.served import Served
from optkit.costs.serverless import simulate_functions
from optkit.costs.service import Service
from optkit.costs.simulation import TIMEOUT_S, Batching, simulate
from optkit.costs.traffic import Traffic

LEVEL = 0.99
SCREENED = 100_000  # requests, of the busiest stretch, on which batches and waits are chosen
WAITS = (0.0, 0.25, 0.5)  # of the time that the target leaves beside the service of a full batch
SHARES = (0.9, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05)  # of the largest batch, as an autoscaler's target
LEAST = (0.25, 0.5)  # of the fixed replicas, which an autoscaler keeps; or none, or one


@dataclass(frozen=True)
class Found:
    """A way to serve the traffic.

    Attributes:
        batching: the batches.
        policy: the replicas; None for serverless instances.
        served: what came of it.
    """

    batching: Batching
    policy: Fixed | Autoscaled | None
    served: Served

    @property
    def p99_s(self) -> float:
        """99th percentile of latency."""
        return self.served.quantile(LEVEL)


class Search:
    """Finds what serves a stream of requests within a latency target.

    Args:
        traffic: the requests.
        target_s: of the 99th percentile of waiting and service.
        seed: of the service times, the same for all that is compared.
    """

    def __init__(self, traffic: Traffic, target_s: float, seed: int = 0):
        self.traffic, self.target_s, self.seed = traffic, target_s, seed
        self.timeout_s = max(TIMEOUT_S, 2 * target_s)
        self._stretch = busiest(traffic, SCREENED)

    def fixed(self, service: Service) -> Found | None:
        """The fewest replicas, and the batches that need so few; None where no number meets the target.

        Batches and waits are chosen on the busiest stretch, the number on all of the traffic.
        """
        best: Found | None = None
        for batching in self._batchings(service):
            best = self._better(service, batching, best)
        return best and self.fewest(service, best.batching, _replicas(best))

    def fewest(self, service: Service, batching: Batching, guess: int = 1) -> Found | None:
        """The fewest replicas that meet the target with these batches; None where no number does."""
        return self._fewest(self.traffic, service, batching, guess)

    def autoscaled(self, service: Service, fixed: Found, cold_start_s: float) -> Iterator[Found]:
        """Autoscalers that meet the target: for each least number of replicas the one that keeps the fewest."""
        replicas = _replicas(fixed)
        for least in sorted({0, 1, *(int(share * replicas) for share in LEAST)}):

            def at(share: float, least: int = least) -> Found:
                target = share * fixed.batching.max_batch
                policy = Autoscaled(target, least, max_replicas=2 * replicas)
                return self.again(service, replace(fixed, policy=policy), cold_start_s)

            found = self._first(at, SHARES)
            if found is not None:
                yield found[1]
                if found[0] == SHARES[0]:
                    return

    def serverless(self, service: Service, cold_start_s: float, keep_warm_s: float, concurrency: int) -> Found:
        """Instances that come with requests."""
        time = service.bind(self.traffic, 1, self.seed)
        served = simulate_functions(self.traffic, time, cold_start_s, keep_warm_s, concurrency)
        return Found(Batching(), None, served)

    def again(self, service: Service, found: Found, cold_start_s: float = 0.0) -> Found:
        """The same batches and replicas with other service times."""
        assert found.policy is not None
        return self._run(self.traffic, service, found.batching, found.policy, cold_start_s)

    def meets(self, found: Found) -> bool:
        """Whether it meets the target."""
        return found.p99_s <= self.target_s

    def _batchings(self, service: Service) -> Iterator[Batching]:
        for size in service.sizes:
            left = self.target_s - service.p99(self._stretch, size)
            for wait in WAITS if size > 1 else WAITS[:1]:
                if left >= 0:
                    yield Batching(size, wait * left)

    def _better(self, service: Service, batching: Batching, best: Found | None) -> Found | None:
        """The better of the best so far and of what these batches need: fewer replicas, then a lower p99."""
        if best is None:
            return self._fewest(self._stretch, service, batching)
        replicas = _replicas(best)
        if replicas > 1:
            fewer = self._run(self._stretch, service, batching, Fixed(replicas - 1))
            if self.meets(fewer):
                return self._fewest(self._stretch, service, batching, replicas - 1)
        same = self._run(self._stretch, service, batching, Fixed(replicas))
        return same if same.p99_s < best.p99_s else best

    def _fewest(self, traffic: Traffic, service: Service, batching: Batching, guess: int = 1) -> Found | None:
        load = traffic.rate * service.mean(traffic, batching.max_batch) / batching.max_batch
        high, most = max(guess, math.ceil(load)), self._most_at_once(traffic)
        found = self._run(traffic, service, batching, Fixed(high))
        low = 0  # so few do not meet it
        while not self.meets(found):
            if high >= most:
                return None
            low, high = high, min(2 * high, most)
            found = self._run(traffic, service, batching, Fixed(high))
        while high - low > 1:
            middle = (low + high) // 2
            tried = self._run(traffic, service, batching, Fixed(middle))
            if self.meets(tried):
                found, high = tried, middle
            else:
                low = middle
        return found

    def _first(self, at: Callable[[float], Found], shares: tuple[float, ...]) -> tuple[float, Found] | None:
        """The first share that meets the target, by bisection: later ones keep more replicas."""
        low, high, best = 0, len(shares), None
        while low < high:
            middle = (low + high) // 2
            found = at(shares[middle])
            if self.meets(found):
                high, best = middle, (shares[middle], found)
            else:
                low = middle + 1
        return best

    def _most_at_once(self, traffic: Traffic) -> int:
        """Requests within the target's time: with so many replicas none waits for another."""
        arrivals = traffic.arrivals
        behind = np.searchsorted(arrivals, arrivals + self.target_s, side="right") - np.arange(arrivals.size)
        return int(behind.max())

    def _run(
        self, traffic: Traffic, service: Service, batching: Batching, policy: Fixed | Autoscaled, cold_s: float = 0.0
    ) -> Found:
        time = service.bind(traffic, batching.max_batch, self.seed)
        return Found(batching, policy, simulate(traffic, time, policy, batching, cold_s, self.timeout_s))


def busiest(traffic: Traffic, requests: int) -> Traffic:
    """The busiest stretch of so many requests on average; all of the traffic if there are not more."""
    if len(traffic) <= requests:
        return traffic
    last = requests - 1
    lasts = traffic.arrivals[last:] - traffic.arrivals[: len(traffic) - last]
    first = int(lasts.argmin())
    return traffic.window(float(traffic.arrivals[first]), float(lasts[first]) * requests / last)


def _replicas(found: Found) -> int:
    assert isinstance(found.policy, Fixed)
    return found.policy.replicas
