"""Money, to the cent."""

from pathlib import Path

import numpy as np
import pytest

from optkit.costs.bill import bill_function, bill_instances
from optkit.costs.policies import Fixed
from optkit.costs.prices import read_prices
from optkit.costs.replicas import replicas_of
from optkit.costs.served import Served
from optkit.costs.serverless import simulate_functions
from optkit.costs.simulation import Batching, simulate
from optkit.costs.traffic import Traffic
from tests.costs.runs import chain
from tests.costs.services import constant
from tests.costs.test_prices import PRICES

HOUR, DAY = 3600.0, 86_400.0


@pytest.fixture
def replica():
    """2 threads and 1 GB; 1,000 bytes in and 10 out."""
    return replicas_of(Path("runs/r"), chain())[0]


def day(seconds=DAY, requests=1000):
    return Traffic("even", np.arange(requests) * (seconds / requests), seconds)


def test_a_fixed_day_is_hours_of_whole_machines_and_bytes(replica):
    prices = read_prices(PRICES)
    small, large = prices.instances
    traffic = day(2 * DAY)
    served = simulate(traffic, constant({1: 0.1}).bind(traffic, 1, 0), Fixed(5), Batching())
    # five machines of 2 cores; two of 8 cores, with four replicas each
    bill = bill_instances(served, replica, small, prices)
    assert bill.machines == pytest.approx(5 * 48 * 0.10)
    assert bill.transfer == pytest.approx((1e6 * 0.01 + 1e4 * 0.09) / 1e9)
    assert bill.a_day == pytest.approx(12.0, abs=0.005)
    assert bill.a_million == pytest.approx(24_000 + 0.0109)
    assert bill.spot_a_day == pytest.approx(5 * 24 * 0.04, abs=0.005)
    assert bill_instances(served, replica, large, prices).machines == pytest.approx(2 * 48 * 0.36)
    assert bill_instances(served, replica, large, prices).spot is None


def test_machines_are_paid_while_there_are_replicas_for_them(replica):
    prices = read_prices(PRICES)
    small, large = prices.instances
    # an hour with 1 replica, two with 5, one with none; what comes behind the traffic's end is not paid
    served = Served(
        np.full(10, 0.1), 4 * HOUR, np.array([0, 10]), 1.0, np.array([0, 1, 3, 5]) * HOUR, np.array([1, 5, 0, 9])
    )  # fmt: skip
    assert bill_instances(served, replica, small, prices).machines == pytest.approx((1 + 2 * 5) * 0.10)
    assert bill_instances(served, replica, large, prices).machines == pytest.approx((1 + 2 * 2) * 0.36)
    assert served.replica_s == 11 * HOUR


def test_functions_are_paid_by_gigabyte_seconds_rounded_up_and_by_requests(replica):
    prices = read_prices(PRICES)
    (function,) = prices.functions
    traffic = day()
    time = constant({1: 0.0123}).bind(traffic, 1, 0)
    served = simulate_functions(traffic, time, cold_start_s=2.0, keep_warm_s=300.0)
    # one cold start of 2.0123 s, 999 times 12.3 ms; 13 ms are paid, of two cores' memory
    bill = bill_function(served, replica, function, prices)
    assert bill.machines == pytest.approx((2.013 + 999 * 0.013) * 2 * 1.769 * 0.0000166667)
    assert bill.requests == pytest.approx(1000 * 2e-7)
    assert bill.total == bill.machines + bill.requests + bill.transfer
    assert bill.a_million == pytest.approx(1000 * bill.total)
    assert bill.spot_a_day is None


def test_lost_requests_are_not_answered(replica):
    prices = read_prices(PRICES)
    latency = np.array([0.1, np.inf, 0.1, np.inf])
    served = Served(latency, DAY, np.array([0, 2]), 0.2, np.zeros(1), np.ones(1, int))
    bill = bill_instances(served, replica, prices.instances[0], prices)
    assert bill.answered == 2
    assert bill.transfer == pytest.approx((4 * 1000 * 0.01 + 2 * 10 * 0.09) / 1e9)
    assert bill.a_million == pytest.approx(1.2e6, rel=1e-6)
