"""`cost`: what it costs to serve the variants of runs under real traffic."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from optkit.core import ledger
from optkit.core.checks import check_choice
from optkit.core.errors import UserError
from optkit.core.progress import track
from optkit.costs.deployments import Estimator
from optkit.costs.optimum import Search
from optkit.costs.payback import choices, paybacks, shares
from optkit.costs.policies import AUTOSCALED, BEST, FIXED, POLICIES, SERVERLESS
from optkit.costs.prices import Prices, read_prices
from optkit.costs.replicas import Replica, check_tokens, measure_again, replicas_of
from optkit.costs.result import Costs, Deployment
from optkit.costs.service import TokenTimes
from optkit.costs.specs import parse_traffic
from optkit.costs.traffic import Traffic, describe
from optkit.costs.units import SECONDS, quantity
from optkit.report.rows import rows
from optkit.report.unmeasured import measured_runs


def cost(
    runs: str | Path | Sequence[str | Path],
    traffic: str | Traffic,
    prices: str | Path | Prices,
    p99: str,
    policy: str = BEST,
) -> Costs:
    """What it costs to serve the variants of runs.

    For each variant, engine and policy it finds the cheapest way to answer 99% of the requests within the target: batch
    size, wait, replicas or autoscaler, and offer of the price list.

    Args:
        runs: run folders, folders of these, or ledger files.
        traffic: a specification (`optkit.costs.parse_traffic`), or the requests.
        prices: a YAML file (`optkit.costs.read_prices`), or a price list.
        p99: the target of waiting and service, with its unit: ``50 ms``.
        policy: ``fixed``, ``autoscaled``, ``serverless``, or ``best`` for all of them.

    Raises:
        UserError: a mistake in an argument or a file; a figure that the runs do not hold; a target that nothing meets.
    """
    check_choice("policy", policy, (BEST, *POLICIES))
    target_s = quantity(p99, SECONDS, "p99")
    listed = prices if isinstance(prices, Prices) else read_prices(prices)
    policies = _offered(listed, policy)
    paths = [runs] if isinstance(runs, str | Path) else runs
    found = [(folder, ledger.unique(ledger.read(folder))) for folder in measured_runs(paths)]
    replicas = [replica for folder, records in found for replica in replicas_of(folder, records)]
    requests = parse_traffic(traffic) if isinstance(traffic, str) else traffic
    _check(replicas, requests, policies)
    estimator = Estimator(Search(requests, target_s), listed, rows(r for _, records in found for r in records))
    deployments = [
        deployment
        for replica in track(replicas, "costs of variants", len(replicas))
        for deployment in estimator.deployments(replica, policies)
    ]
    if not deployments:
        raise _unmet(replicas, requests, target_s, estimator.unmet)
    return Costs(
        traffic=describe(requests),
        traffic_name=requests.name,
        prices=listed.date,
        p99_ms=1e3 * target_s,
        deployments=deployments,
        unmet=estimator.unmet,
        hints=_hints(replicas, deployments),
        paybacks=paybacks(deployments, listed.making, requests.seconds),
        shares=shares(deployments),
        choices=choices(deployments, estimator.rows),
    )


def _check(replicas: Sequence[Replica], traffic: Traffic, policies: Sequence[str]) -> None:
    """Raises UserError for what the traffic or a policy needs and the runs do not hold."""
    for one in replicas:
        if isinstance(one.service, TokenTimes):
            check_tokens(one, one.service.longest(traffic))
        if policies != [FIXED]:
            one.cold_start_s(0.0)


def _offered(prices: Prices, policy: str) -> list[str]:
    """The policies to compare, of which the price list must have offers."""
    has = {FIXED: prices.instances, AUTOSCALED: prices.instances, SERVERLESS: prices.functions}
    if policy != BEST and not has[policy]:
        part = "serverless" if policy == SERVERLESS else "instances"
        raise UserError(f"the price list has no {part}", key="policy", value=policy, fix=f"add one under {part}")
    return [kind for kind in POLICIES if has[kind] and policy in (BEST, kind)]


def _unmet(replicas: Sequence[Replica], traffic: Traffic, target_s: float, why: Sequence[str]) -> UserError:
    """No number of replicas meets the target, or no offer does; the fastest variant is named."""
    fastest = min(replicas, key=lambda one: one.service.p99(traffic, 1))
    alone = 1e3 * fastest.service.p99(traffic, 1)
    if alone > 1e3 * target_s:
        message = (
            f"no number of replicas meets it: the fastest, {fastest.name}, takes {alone:.3g} ms without any waiting"
        )
        return UserError(message, key="p99", value=target_s, fix=f"at least {math.ceil(1.1 * alone)} ms")
    return UserError(f"nothing meets it: {'; '.join(why)}", key="p99", value=target_s, fix="a higher target")


def _hints(replicas: Sequence[Replica], deployments: Sequence[Deployment]) -> list[str]:
    """The commands that measure the batch sizes around an optimum where those that were measured lie far apart."""
    sizes = {(r.record.run, r.record.variant, r.engine): r.service.sizes for r in replicas}
    folders = {r.record.run: r.folder for r in replicas}
    missing: dict[str, set[int]] = {}
    for one in deployments:
        known = sizes[one.run, one.variant, one.engine]
        if one.policy != SERVERLESS and len(known) > 1:
            missing.setdefault(one.run, set()).update(_around(known, one.max_batch))
    found = []
    for run, wanted in missing.items():
        every = sorted({n for key, own in sizes.items() if key[0] == run for n in own} | wanted)
        if wanted:
            command = measure_again(folders[run], f"measure.batch_sizes=[{','.join(map(str, every))}]")
            found.append(f"The best batch may lie between those measured. Measure {_words(wanted)}, too: {command}")
    return found


def _around(sizes: Sequence[int], chosen: int) -> list[int]:
    """Batch sizes half way (geometrically) to the neighbours of the chosen one that are more than twice as far."""
    place = sizes.index(chosen)
    pairs = [*zip(sizes[max(place - 1, 0) : place], sizes[place : place + 1], strict=False)]
    pairs += [*zip(sizes[place : place + 1], sizes[place + 1 : place + 2], strict=False)]
    return [round(math.sqrt(low * high)) for low, high in pairs if high > 2 * low]


def _words(sizes: Iterable[int]) -> str:
    return " and ".join(map(str, sorted(sizes)))
