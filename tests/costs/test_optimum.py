"""The search against trying everything."""

import math

import numpy as np
import pytest

from optkit.costs.optimum import WAITS, Search, busiest
from optkit.costs.policies import Autoscaled, Fixed
from optkit.costs.simulation import Batching, simulate
from optkit.costs.synthetic import daily, poisson
from tests.costs.services import constant, exponential


@pytest.mark.parametrize("rate", [5, 60, 150])
def test_no_batches_need_fewer_replicas_than_those_found(rate):
    traffic, target = poisson(rate, 4000 / rate, 3), 0.4
    service = constant({1: 0.05, 4: 0.08, 16: 0.2})
    search = Search(traffic, target)
    found = search.fixed(service)

    def p99(batching, replicas):
        time = service.bind(traffic, batching.max_batch, 0)
        return simulate(traffic, time, Fixed(replicas), batching).quantile(0.99)

    every = [Batching(size, wait * (target - service.mean(None, size))) for size in (1, 4, 16) for wait in WAITS]
    assert p99(found.batching, found.policy.replicas) <= target
    assert all(p99(batching, found.policy.replicas - 1) > target for batching in every if found.policy.replicas > 1)
    assert min(p99(batching, found.policy.replicas) for batching in every) == pytest.approx(found.p99_s)


def test_the_fewest_replicas_of_exponential_service_are_those_of_erlangs_tail():
    # M/M/c: the share of requests that take longer than t; service 1 s, 4 arrive a second, 99% within 5 s
    def late(servers, load=4.0, limit=5.0):
        share, spare = load / servers, servers - load
        waiting = load**servers / math.factorial(servers) / (1 - share)
        wait = waiting / (sum(load**k / math.factorial(k) for k in range(servers)) + waiting)
        alone = math.exp(-limit)
        both = alone * (1 + limit) if spare == 1 else (spare * alone - math.exp(-spare * limit)) / (spare - 1)
        return (1 - wait) * alone + wait * both

    fewest = next(servers for servers in range(5, 20) if late(servers) <= 0.01)
    found = Search(poisson(4.0, 20_000.0, 1), 5.0).fixed(exponential())
    assert found.policy.replicas == fewest


def test_a_target_below_the_service_time_has_no_number_of_replicas():
    assert Search(poisson(5.0, 100.0, 0), 0.04).fixed(constant({1: 0.05})) is None
    assert Search(poisson(5.0, 100.0, 0), 0.04).fewest(constant({1: 0.05}), Batching()) is None


def test_an_autoscaler_keeps_fewer_replicas_than_the_peak_needs():
    traffic = daily(0.5, 86_400.0, 0, 2.5)
    service = constant({1: 4.0})
    search = Search(traffic, 20.0)
    fixed = search.fixed(service)
    found = list(search.autoscaled(service, fixed, cold_start_s=5.0))
    assert found
    for one in found:
        assert isinstance(one.policy, Autoscaled)
        assert one.p99_s <= 20.0
        assert one.served.replica_s < 0.8 * fixed.served.replica_s
        assert one.served.replica_s > one.served.busy_s
    assert [one.policy.min_replicas for one in found] == sorted({one.policy.min_replicas for one in found})


def test_the_busiest_stretch_holds_as_many_requests_in_the_least_time():
    traffic = daily(2.0, 86_400.0, 0, 3.0)
    found = busiest(traffic, 10_000)
    assert len(found) == pytest.approx(10_000, abs=5)
    assert found.rate == pytest.approx(6.0, rel=0.1)
    assert found.arrivals[0] == 0
    assert np.all(found.arrivals < found.seconds)
    assert busiest(traffic, 10**6) is traffic
