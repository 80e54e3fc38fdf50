"""The cheapest deployment of a variant on an engine under a policy, over the offers of a price list."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from optkit.core import ledger
from optkit.core.records import variant_folder
from optkit.costs.bill import Bill, bill_function, bill_instances
from optkit.costs.optimum import Found, Search
from optkit.costs.policies import AUTOSCALED, FIXED, SERVERLESS, Autoscaled, Fixed
from optkit.costs.prices import Function, Instance, Prices
from optkit.costs.replicas import Replica, at_speed, replicas_of
from optkit.costs.result import Deployment
from optkit.costs.service import Service
from optkit.costs.traffic import HOUR, Traffic
from optkit.engines.registry import ENGINES
from optkit.report.page.costs import chain_cost
from optkit.report.rows import Row

POINTS = 288  # of a timeline
JOULES_A_KWH = 3.6e6
Offer = Instance | Function


@dataclass(frozen=True)
class Priced:
    """A way to serve the traffic on an offer, and its bill."""

    found: Found
    offer: Offer
    replica: Replica
    bill: Bill


class Estimator:
    """Finds the cheapest deployment of a replica under a policy.

    Attributes:
        rows: of the report, of all runs.
        unmet: what does not meet the target, in words.
    """

    def __init__(self, search: Search, prices: Prices, found: Sequence[Row]):
        self.search, self.prices, self.rows = search, prices, found
        self.unmet: list[str] = []
        # of one replica, by the machine's speed and, behind it, its cold start
        self._fixed: dict[tuple[object, ...], Found | None] = {}
        self._scaled: dict[tuple[object, ...], list[Found]] = {}
        self._others: dict[Path, list[Replica]] = {}

    def deployments(self, replica: Replica, policies: Iterable[str]) -> Iterator[Deployment]:
        """The cheapest under each policy that meets the target; none where nothing does, and `unmet` says why."""
        self._fixed.clear()
        self._scaled.clear()
        for policy in policies:
            yield from self._cheapest(replica, policy)

    def _cheapest(self, replica: Replica, policy: str) -> Iterator[Deployment]:
        offers: Sequence[Offer] = self.prices.functions if policy == SERVERLESS else self.prices.instances
        ways = {FIXED: self._as_fixed, AUTOSCALED: self._as_autoscaled, SERVERLESS: self._as_serverless}
        said = len(self.unmet)
        priced = [p for offer in offers for placed in self._placed(replica, offer) for p in ways[policy](placed, offer)]
        if priced:
            del self.unmet[said:]
            yield self._deployment(min(priced, key=lambda p: p.bill.total), policy)

    def _placed(self, replica: Replica, offer: Offer) -> Iterator[Replica]:
        """The replica as fast as it is on an offer, where it fits."""
        if replica.engine in ENGINES and ENGINES[replica.engine].device != "cpu":
            self._say(replica, offer, "it runs on a GPU, and price lists know cores and memory only")
            return
        if offer.run is not None:
            if offer.run not in self._others:
                self._others[offer.run] = replicas_of(offer.run, ledger.unique(ledger.read(offer.run)))
            same = (replica.record.variant, replica.engine)
            placed = next((one for one in self._others[offer.run] if (one.record.variant, one.engine) == same), None)
            if placed is None:
                self._say(replica, offer, f"{offer.run} did not measure it")
                return
        else:
            assert offer.speed is not None
            placed = at_speed(replica, offer.speed)
        if not _fits(placed, offer):
            self._say(replica, offer, f"it needs {placed.threads} cores and {placed.memory_gb:.2f} GB")
            return
        yield placed

    def _as_fixed(self, replica: Replica, offer: Offer) -> Iterator[Priced]:
        found = self._fixed_of(replica, offer)
        if found is None:
            alone = 1e3 * replica.service.p99(self.search.traffic, 1)
            self._say(replica, offer, f"no number of replicas meets the target, it takes {alone:.3g} ms by itself")
        else:
            yield self._price(found, offer, replica)

    def _as_autoscaled(self, replica: Replica, offer: Offer) -> Iterator[Priced]:
        fixed = self._fixed_of(replica, offer)
        if fixed is None:
            return
        cold_s = replica.cold_start_s(offer.start_s)
        key = (offer.speed, offer.run, cold_s)
        if key not in self._scaled:
            self._scaled[key] = list(self.search.autoscaled(replica.service, fixed, cold_s))
        if not self._scaled[key]:
            self._say(replica, offer, f"autoscaled, it misses the target: a replica starts in {cold_s:.3g} s")
        yield from (self._price(found, offer, replica) for found in self._scaled[key])

    def _as_serverless(self, replica: Replica, offer: Offer) -> Iterator[Priced]:
        assert isinstance(offer, Function)
        found = self._serverless(replica, offer, replica.service)
        if self.search.meets(found):
            yield self._price(found, offer, replica)
        else:
            self._say(replica, offer, f"its p99 is {1e3 * found.p99_s:.3g} ms")

    def _serverless(self, replica: Replica, offer: Function, service: Service) -> Found:
        cold_s = replica.cold_start_s(offer.start_s)
        return self.search.serverless(service, cold_s, offer.keep_warm_s, offer.concurrency)

    def _fixed_of(self, replica: Replica, offer: Offer) -> Found | None:
        """The search of the fewest replicas, once for each speed."""
        key = (offer.speed, offer.run)
        if key not in self._fixed:
            self._fixed[key] = self.search.fixed(replica.service)
        return self._fixed[key]

    def _price(self, found: Found, offer: Offer, replica: Replica) -> Priced:
        if isinstance(offer, Function):
            return Priced(found, offer, replica, bill_function(found.served, replica, offer, self.prices))
        return Priced(found, offer, replica, bill_instances(found.served, replica, offer, self.prices))

    def _at_end(self, priced: Priced, end: int) -> Priced | None:
        """The same with service times at an end of their intervals; None where it misses the target."""
        found, offer, replica = priced.found, priced.offer, priced.replica
        service = replica.service.scaled(end)
        if isinstance(offer, Function):
            served = self._serverless(replica, offer, service)
            return self._price(served, offer, replica) if self.search.meets(served) else None
        if isinstance(found.policy, Fixed):
            needed = self.search.fewest(service, found.batching, found.policy.replicas)
            return None if needed is None else self._price(needed, offer, replica)
        again = self.search.again(service, found, replica.cold_start_s(offer.start_s))
        return self._price(again, offer, replica) if self.search.meets(again) else None

    def _interval(self, priced: Priced) -> list[Bill] | None:
        """The bills at both ends and in the middle; None where an end is not known."""
        if priced.replica.caveat is not None:
            return None
        ends = [self._at_end(priced, end) for end in (0, 1)]
        return None if None in ends else [priced.bill, *(one.bill for one in ends if one is not None)]

    def _deployment(self, priced: Priced, policy: str) -> Deployment:
        found, bill, replica = priced.found, priced.bill, priced.replica
        served, record = found.served, replica.record
        bills = self._interval(priced)
        energy = replica.energy(served.batches)
        by_variant = {row["variant"]: row for row in self.rows if row["run"] == record.run}
        scaling = found.policy if isinstance(found.policy, Autoscaled) else None
        return Deployment(
            run=record.run,
            recipe=record.recipe,
            variant=record.variant,
            name=replica.variant_name,
            folder=variant_folder(replica.folder, record).relative_to(replica.folder).as_posix(),
            step=record.step,
            stage=record.stage,
            technique=record.technique,
            chain=list(record.chain),
            control=record.control,
            engine=replica.engine,
            policy=policy,
            offer=priced.offer.name,
            max_batch=found.batching.max_batch,
            max_wait_ms=1e3 * found.batching.max_wait_s,
            replicas=int(served.replicas.max()),
            mean_replicas=served.replica_s / served.seconds,
            scaling=scaling,
            utilization=None if policy == SERVERLESS else served.utilization,
            p50_ms=1e3 * served.quantile(0.5),
            p95_ms=1e3 * served.quantile(0.95),
            p99_ms=1e3 * served.quantile(0.99),
            requests=served.latency.size,
            late=served.late(self.search.target_s),
            lost=served.lost,
            dollars_a_day=bill.a_day,
            dollars_a_million=bill.a_million,
            dollars_a_day_ci=_ends(bills, lambda one: one.a_day),
            dollars_a_million_ci=_ends(bills, lambda one: one.a_million),
            spot_dollars_a_day=bill.spot_a_day,
            kwh_a_million=None if energy is None else energy / JOULES_A_KWH * 1e6 / bill.answered,
            memory_gb=replica.memory_gb,
            threads=replica.threads,
            making_s=chain_cost(by_variant[record.variant], by_variant),
            caveat=replica.caveat,
            timeline=_timeline(found, self.search.traffic),
        )

    def _say(self, replica: Replica, offer: Offer, why: str) -> None:
        self.unmet.append(f"{replica.name}, {offer.name}: {why}")


def _fits(replica: Replica, offer: Offer) -> bool:
    if isinstance(offer, Function):
        return offer.size(replica.threads, replica.memory_gb) is not None
    return offer.replicas(replica.threads, replica.memory_gb) >= 1


def _ends(bills: Iterable[Bill] | None, of: Callable[[Bill], float]) -> list[float] | None:
    if bills is None:
        return None
    values = sorted(map(of, bills))
    return [values[0], values[-1]]


def _timeline(found: Found, traffic: Traffic) -> list[list[float]]:
    step = traffic.seconds / POINTS
    rates = traffic.counts(step)[:POINTS] / step
    times = (np.arange(rates.size, dtype=np.float64) + 0.5) * step
    columns = (times / HOUR, rates, found.served.replicas_at(times))
    return [[round(float(v), 4) for v in point] for point in zip(*columns, strict=True)]
