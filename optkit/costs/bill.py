"""Bills: what the resources that served a stream of requests cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from optkit.core.errors import UserError
from optkit.costs.prices import Function, Instance, Prices
from optkit.costs.replicas import Replica
from optkit.costs.served import Served
from optkit.costs.traffic import DAY

BYTES = 1e9  # of a GB
MILLION = 1e6
NEARLY = 1e-6


@dataclass(frozen=True)
class Bill:
    """Dollars of a stream of requests.

    Attributes:
        machines: of machines, or of serverless GB-seconds.
        requests: of the platform, by request.
        transfer: of bytes in and out.
        spot: of machines at their spot price; None where there is none.
        answered: requests.
        seconds: how long the traffic lasted.
    """

    machines: float
    requests: float
    transfer: float
    spot: float | None
    answered: int
    seconds: float

    @property
    def total(self) -> float:
        return self.machines + self.requests + self.transfer

    @property
    def a_day(self) -> float:
        """Dollars a day."""
        return self.total * DAY / self.seconds

    @property
    def a_million(self) -> float:
        """Dollars a million answered requests; infinite without any."""
        return self.total * MILLION / self.answered if self.answered else math.inf

    @property
    def spot_a_day(self) -> float | None:
        """Dollars a day on spot machines."""
        return None if self.spot is None else (self.total - self.machines + self.spot) * DAY / self.seconds


def bill_instances(served: Served, replica: Replica, instance: Instance, prices: Prices) -> Bill:
    """Of whole machines, each with as many replicas as fit.

    Raises:
        UserError: the machine holds no replica.
    """
    per_machine = instance.replicas(replica.threads, replica.memory_gb)
    if per_machine < 1:
        needs = f"{replica.threads} cores and {replica.memory_gb:.2f} GB"
        raise UserError(f"{instance.name} is too small for {replica.name}, which needs {needs}", key="prices")
    hours = served.machine_s(per_machine) / 3600
    spot = None if instance.spot is None else hours * instance.spot
    return _bill(served, replica, prices, hours * instance.price, 0.0, spot)


def bill_function(served: Served, replica: Replica, function: Function, prices: Prices) -> Bill:
    """Of GB-seconds, each time that an instance is busy rounded up to the platform's step, and of requests."""
    size = function.size(replica.threads, replica.memory_gb)
    assert size is not None
    assert served.periods is not None
    periods = served.periods
    if function.step_s:
        periods = np.ceil(periods / function.step_s - NEARLY) * function.step_s
    machines = float(periods.sum()) * size * function.price
    return _bill(served, replica, prices, machines, served.latency.size * function.request, None)


def _bill(
    served: Served, replica: Replica, prices: Prices, machines: float, requests: float, spot: float | None
) -> Bill:
    answered = served.latency.size - served.lost
    transfer = (
        served.latency.size * replica.bytes_in * prices.bytes_in + answered * replica.bytes_out * prices.bytes_out
    ) / BYTES
    return Bill(machines, requests, transfer, spot, answered, served.seconds)
