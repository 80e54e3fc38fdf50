"""What pays: break-even of each variant, each technique's dollars, and the cheapest for each loss of quality."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from optkit.costs.result import Choice, Deployment, Payback, Share
from optkit.report.page.verdict import keeps_quality
from optkit.report.paired import TOLERANCES
from optkit.report.rows import Row
from optkit.report.written import Written
from optkit.study.game import num_orders, shapley_weights

MILLION, DAY = 1e6, 86_400


def paybacks(deployments: Sequence[Deployment], making: float | None, seconds: float) -> list[Payback]:
    """From when on each variant has paid for its making, against the baseline of its run under the same policy.

    Of each variant and of the baseline the cheapest engine counts, so that a technique is not credited with what the
    engine gains. The baseline's own making is not charged.

    Args:
        deployments: of any runs; those whose timing cannot be trusted are left out.
        making: dollars an hour of the machine that ran the stages; None gives no paybacks.
        seconds: of the traffic.
    """
    if making is None:
        return []
    found = []
    for own in _families(deployments):
        baseline = _cheapest(one for one in own if one.step == 0 and one.control is None)
        variants = list(dict.fromkeys(one.variant for one in own if one.step > 0))
        for variant in variants if baseline else ():
            best = _cheapest(one for one in own if one.variant == variant)
            assert baseline is not None
            assert best is not None
            found.append(_payback(best, baseline, making, seconds))
    return found


def _payback(one: Deployment, baseline: Deployment, making: float, seconds: float) -> Payback:
    dollars = one.making_s / 3600 * making
    saved = baseline.dollars_a_million - one.dollars_a_million
    requests = _break_even(dollars, saved)
    a_day = (one.requests - one.lost) / seconds * DAY
    ours, theirs = one.dollars_a_million_ci, baseline.dollars_a_million_ci
    ends = None if ours is None or theirs is None else [theirs[1] - ours[0], theirs[0] - ours[1]]
    return Payback(
        run=one.run,
        name=one.name,
        policy=one.policy,
        engine=one.engine,
        control=one.control,
        making_dollars=dollars,
        saved_a_million=saved,
        requests=requests,
        requests_ci=None if ends is None else [_break_even(dollars, end) for end in ends],
        days=None if requests is None else requests / a_day,
    )


def _break_even(dollars: float, saved_a_million: float) -> float | None:
    """Requests until as much is saved; None for never."""
    return dollars / saved_a_million * MILLION if saved_a_million > 0 else None


def shares(deployments: Sequence[Deployment]) -> list[Share]:
    """What each stage adds to the dollars of a million requests: its Shapley value over the chains that were measured.

    Of a run that holds its own chain alone, that is each step against the one before it.
    """
    found = []
    for own in _families(deployments):
        kept = [one for one in own if one.control is None]
        whole = max((one.chain for one in kept), key=len, default=[])
        values = {}
        for one in kept:
            in_order = one.chain == [stage for stage in whole if stage in one.chain]
            cheapest = _cheapest(other for other in kept if other.chain == one.chain)
            if in_order and cheapest is not None:
                values[frozenset(one.chain)] = cheapest.dollars_a_million
        orders = num_orders(whole, values)
        for technique, weights in (shapley_weights(whole, values) or {}).items():
            total = math.fsum(weight * values[subset] for subset, weight in weights.items())
            found.append(Share(kept[0].run, technique, kept[0].policy, total, orders))
    return found


def choices(deployments: Sequence[Deployment], rows: Sequence[Row]) -> list[Choice]:
    """The cheapest deployment for each loss that can be borne; controls and doubtful timings do not compete.

    Deployments compete by the upper end of their dollars' interval, so that a lucky figure does not win.

    Args:
        deployments: of any runs.
        rows: of the report, of the same runs.
    """
    judged = {(r["run"], r["variant"], r["engine"], r["batch_size"]): r for r in rows}
    places: list[tuple[int, Row]] = []
    for place, one in enumerate(deployments):
        row = judged.get((one.run, one.variant, one.engine, one.max_batch))
        if row is not None and one.control is None and one.caveat is None:
            places.append((place, row))
    found = []
    for tolerance in (None, *TOLERANCES):
        fit = [place for place, row in places if keeps_quality(row, tolerance)]
        best = min(fit, key=lambda place: _surely(deployments[place]), default=None)
        words = (
            None if tolerance is None else Written.of(places[0][1]).tolerated(tolerance) if places else f"{tolerance}"
        )
        found.append(Choice(words, best))
    return found


def _families(deployments: Sequence[Deployment]) -> list[list[Deployment]]:
    """Those of one run under one policy whose timings can be trusted."""
    found: dict[tuple[str, str], list[Deployment]] = {}
    for one in deployments:
        if one.caveat is None:
            found.setdefault((one.run, one.policy), []).append(one)
    return list(found.values())


def _cheapest(deployments: Iterable[Deployment]) -> Deployment | None:
    return min(deployments, key=lambda one: one.dollars_a_million, default=None)


def _surely(one: Deployment) -> tuple[float, float]:
    """The dollars that are surely not exceeded, infinite where the target may be missed, and the dollars."""
    return one.dollars_a_million_ci[1] if one.dollars_a_million_ci else math.inf, one.dollars_a_million
