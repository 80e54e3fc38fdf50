"""The queue against closed forms, and against cases that are worked out by hand."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq

from optkit.costs.policies import Autoscaled, Fixed
from optkit.costs.serverless import simulate_functions
from optkit.costs.simulation import Batching, simulate
from optkit.costs.synthetic import poisson
from optkit.costs.traffic import Traffic
from tests.costs.services import constant, exponential

REQUESTS = 400_000


def waits(service, rate, servers=1, batching=Batching()):  # noqa: B008
    """Mean seconds from arrival to the start of service, and busy servers, of Poisson arrivals."""
    traffic = poisson(rate, REQUESTS / rate, 0)
    time = service.bind(traffic, batching.max_batch, 100)
    served = simulate(traffic, time, Fixed(servers), batching, timeout_s=math.inf)
    assert served.lost < batching.max_batch  # of the last batch, which may never be complete
    service_s = served.busy_s / served.batches.sum()
    return served.latency[np.isfinite(served.latency)].mean() - service_s, served.busy_s / traffic.seconds


def erlang_c(servers, load):
    """Probability that a request waits in M/M/c (Erlang, 1917)."""
    share = load / servers
    waiting = load**servers / math.factorial(servers) / (1 - share)
    return waiting / (sum(load**k / math.factorial(k) for k in range(servers)) + waiting)


@pytest.mark.parametrize(("servers", "share"), [(1, 0.5), (1, 0.7), (4, 0.7)])
def test_exponential_service_waits_as_erlang_says(servers, share):
    wait, load = waits(exponential(), share * servers, servers)
    assert load == pytest.approx(share * servers, rel=0.01)
    # at the load that was drawn, which moves the wait; its sampling error is 0.7%
    assert wait == pytest.approx(erlang_c(servers, load) / (servers - load), rel=0.02)


def test_constant_service_waits_as_pollaczek_and_khinchine_say():
    wait, load = waits(constant({1: 1.0}), 0.7)
    assert wait == pytest.approx(load / (2 * (1 - load)), rel=0.02)


def test_service_of_whatever_waits_up_to_a_largest_batch_has_baileys_queue():
    # M/M(1,b)/1: of n waiting while busy, P = C r^n with (l + m) r = l + m r^(b+1), and idle P = m C / l
    arriving, most = 3.0, 5
    root = brentq(lambda r: r ** (most + 1) - (arriving + 1) * r + arriving, 1e-6, 1 - 1e-6)
    scale = 1 / (1 / arriving + 1 / (1 - root))
    wait, load = waits(exponential(sizes=(1, most)), arriving, batching=Batching(most))
    assert wait == pytest.approx(scale * root / (1 - root) ** 2 / arriving, rel=0.02)
    assert load == pytest.approx(scale / (1 - root), rel=0.01)


def test_service_of_complete_batches_alone_is_an_erlang_queue():
    # batches of k arrive with Erlang(k) gaps: Wq = s / (m (1 - s)), s = (l / (l + m (1 - s)))^k; filling takes (k - 1) / 2l
    arriving, size = 2.8, 4
    root = brentq(lambda s: s - (arriving / (arriving + 1 - s)) ** size, 1e-6, 1 - 1e-3)
    wait, load = waits(exponential(sizes=(1, size)), arriving, batching=Batching(size, math.inf))
    assert wait == pytest.approx((size - 1) / (2 * arriving) + root / (1 - root), rel=0.02)
    assert load == pytest.approx(arriving / size, rel=0.01)


def stream(*arrivals, seconds=100.0):
    return Traffic("by hand", np.array(arrivals, float), seconds)


def serve(traffic, service, policy=None, batching=Batching(), **options):  # noqa: B008
    time = service.bind(traffic, batching.max_batch, 0)
    return simulate(traffic, time, policy or Fixed(1), batching, **options)


def test_a_batch_starts_when_it_is_complete_or_its_first_request_has_waited():
    service = constant({1: 1.0, 3: 2.0})
    served = serve(stream(0.0, 0.2, 0.3, 0.4, 10.0, 10.2), service, batching=Batching(3, 0.5))
    # three at 0.3 for 2 s; the fourth waits for the replica until 2.3; the last two start at 10.5 and take 1.5 s
    assert served.latency == pytest.approx([2.3, 2.1, 2.0, 2.9, 2.0, 1.8])
    assert served.batches.tolist() == [0, 1, 1, 1]
    assert served.busy_s == pytest.approx(2.0 + 1.0 + 1.5)


def test_engines_that_fill_batches_take_the_time_of_the_next_size():
    service = constant({1: 1.0, 4: 2.0}, filled=True)
    assert serve(stream(0.0, 0.1, 0.2), service, batching=Batching(4)).latency == pytest.approx([1.0, 2.9, 2.8])


def test_requests_that_wait_too_long_leave():
    served = serve(stream(0.0, 1.0, 2.0, 9.0), constant({1: 10.0}), timeout_s=8.5)
    assert served.latency.tolist() == [10.0, math.inf, 18.0, math.inf]
    assert served.lost == 2
    assert served.late(12.0) == 1


def test_quantiles_are_those_of_all_requests():
    served = serve(stream(*np.arange(100.0)), constant({1: 0.5}))
    assert [served.quantile(level) for level in (0.5, 0.99)] == [0.5, 0.5]
    lost = serve(stream(0.0, 1.0), constant({1: 10.0}), timeout_s=1.0)
    assert lost.quantile(0.5) == 10.0
    assert lost.quantile(0.99) == math.inf


def test_the_autoscaler_starts_replicas_after_a_cold_start_and_stops_idle_ones():
    rule = Autoscaled(target=1.0, min_replicas=1, max_replicas=9, down_window_s=0.0)
    served = serve(stream(15.0, 16.0, 17.0, 18.0), constant({1: 10.0}), rule, cold_start_s=5.0)
    # until 30 s there are (10 + 14 + 13 + 12) / 15 = 3.3 in progress: 4 replicas, three of them ready at 35 s;
    # until 45 s (5 + 15 + 15) / 15 = 2.3: 3 replicas; then none
    assert served.latency == pytest.approx([10.0, 19.0, 28.0, 27.0])
    assert served.changes.tolist() == [0.0, 30.0, 45.0, 60.0]
    assert served.replicas.tolist() == [1, 4, 3, 1]
    assert served.replica_s == 30 + 4 * 15 + 3 * 15 + 40
    assert served.utilization == pytest.approx(40 / 175)


def test_a_service_goes_to_zero_after_the_cooldown_and_comes_back_at_the_next_poll():
    rule = Autoscaled(target=1.0, min_replicas=0, max_replicas=3, down_window_s=0.0, cooldown_s=60.0, poll_s=30.0)
    served = serve(stream(0.0, 200.0, 201.0, seconds=300.0), constant({1: 1.0}), rule, cold_start_s=4.0)
    # idle from 1 s: stops at the first decision from 61 s on, 75 s; noticed at 210 s, ready at 214 s; idle from 216 s
    assert served.latency == pytest.approx([1.0, 15.0, 15.0])
    assert served.changes.tolist() == [0.0, 75.0, 210.0, 285.0]
    assert served.replicas.tolist() == [1, 0, 1, 0]
    assert served.replica_s == pytest.approx(75 + 75)
    assert served.machine_s(2) == pytest.approx(150)
    at_once = serve(
        stream(0.0, 200.0, seconds=300.0), constant({1: 1.0}), Autoscaled(1.0, 0, 3, cooldown_s=60.0, poll_s=0.0), cold_start_s=4.0
    )  # fmt: skip
    assert at_once.latency == pytest.approx([1.0, 5.0])


def test_serverless_instances_start_cold_stay_warm_and_are_busy_in_periods():
    arrivals = stream(0.0, 1.0, 10.0, 10.5, 200.0, seconds=400.0)
    time = constant({1: 1.0}).bind(arrivals, 1, 0)
    served = simulate_functions(arrivals, time, cold_start_s=3.0, keep_warm_s=60.0)
    # two cold starts at 0 and 1; at 10 and 10.5 both are warm; at 200 both are gone
    assert served.latency == pytest.approx([4.0, 4.0, 1.0, 1.0, 4.0])
    assert served.periods == pytest.approx([4.0, 4.0, 1.0, 1.0, 4.0])
    assert served.replicas_at(np.array([0.5, 1.0, 70.9, 71.2, 199.0, 200.0, 265.0])).tolist() == [1, 2, 2, 1, 0, 1, 0]


def test_a_serverless_instance_holds_as_many_requests_as_its_concurrency():
    arrivals = stream(0.0, 0.1, 0.2, 0.3)
    time = constant({1: 1.0}).bind(arrivals, 1, 0)
    served = simulate_functions(arrivals, time, cold_start_s=0.0, keep_warm_s=60.0, concurrency=2)
    # the second waits behind the first; the third needs a new instance, which the fourth joins
    assert served.latency == pytest.approx([1.0, 1.9, 1.0, 1.9])
    assert served.periods == pytest.approx([2.0, 2.0])
    assert served.replicas.max() == 2
