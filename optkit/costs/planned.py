"""``cost:`` in a recipe: what its run will be asked, checked before any work."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from optkit.core.cache import write_text
from optkit.core.checks import check_choice
from optkit.core.errors import UserError
from optkit.core.ledger import LEDGER_NAME
from optkit.costs.estimate import cost
from optkit.costs.policies import BEST, POLICIES
from optkit.costs.prices import read_prices
from optkit.costs.result import COST, Costs
from optkit.costs.specs import parse_traffic
from optkit.costs.units import SECONDS, quantity
from optkit.measure.config import Measure

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedCost:
    """The cost of serving that a recipe asks for; its fields are the recipe's ``cost``, and `cost`'s arguments.

    Attributes:
        traffic: a specification, see `optkit.costs.parse_traffic`.
        prices: a price list.
        p99: the target of waiting and service, with its unit.
        policy: ``fixed``, ``autoscaled``, ``serverless`` or ``best``.
    """

    traffic: str
    prices: str
    p99: str
    policy: str = BEST

    def __post_init__(self) -> None:
        check_choice("policy", self.policy, (BEST, *POLICIES))
        quantity(self.p99, SECONDS, "p99")
        read_prices(self.prices)
        parse_traffic(self.traffic)

    def check(self, measure: Measure) -> None:
        """Raises UserError where a recipe does not measure what the costs need."""
        if 1 not in measure.batch_sizes:
            sizes = [1, *measure.batch_sizes]
            fix = f"measure.batch_sizes={sizes}"
            raise UserError("cost needs batches of 1", key="measure.batch_sizes", value=measure.batch_sizes, fix=fix)
        if not measure.memory:
            raise UserError("cost needs the memory of a replica", key="measure.memory", fix="measure.memory=true")

    def of(self, folder: Path) -> Costs | None:
        """The costs of a finished run, also written into its folder; None, with a line in the log, if nothing fits."""
        if not (folder / LEDGER_NAME).is_file():
            return None
        from optkit.costs.tables import markdown

        try:
            found = cost(folder, self.traffic, self.prices, self.p99, self.policy)
        except UserError as error:
            log.warning("no costs: %s", error)
            return None
        found.save(folder / COST)
        write_text(folder / "cost.md", markdown(found))
        return found
