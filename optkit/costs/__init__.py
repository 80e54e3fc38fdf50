"""What it costs to serve variants under real traffic: service times of a ledger, a queue, policies, and prices."""

from typing import TYPE_CHECKING

from optkit.core.lazy import lazy_names

if TYPE_CHECKING:
    from optkit.costs.policies import Autoscaled, Fixed
    from optkit.costs.prices import Prices, read_prices
    from optkit.costs.result import Costs, Deployment
    from optkit.costs.served import Served
    from optkit.costs.serverless import simulate_functions
    from optkit.costs.simulation import Batching, simulate
    from optkit.costs.specs import parse_traffic
    from optkit.costs.traffic import Description, Traffic, describe
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "Autoscaled",
    "Batching",
    "Costs",
    "Deployment",
    "Description",
    "Fixed",
    "Prices",
    "Served",
    "Traffic",
    "describe",
    "parse_traffic",
    "read_prices",
    "simulate",
    "simulate_functions",
]
