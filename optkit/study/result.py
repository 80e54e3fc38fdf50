"""What the ledgers of an ablation say: effects of techniques, their interactions, and the effect of order."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np

from optkit.core.caveat import timing_caveat
from optkit.core.records import Measurement, Record, unpack_values
from optkit.core.setting import Setting
from optkit.core.statistics import (
    Estimate,
    Values,
    difference_over_seeds,
    log_error,
    mean_over_seeds,
    ratio_of_medians,
)
from optkit.study.effects import LogCosts, cost_effect, quality_effect
from optkit.study.game import interaction_weights, leave_one_out_weights, num_orders, shapley_weights

BEST = "best"
COUNTED = ("size", "params", "nonzeros", "macs")
NOT_REPEATED = ("peak_memory", "energy")
Chain = tuple[str, ...]
# chains and their weights in a sum that is an effect
Contrast = Mapping[Chain, float]
# its name, the number of the stage it stands beside, and that stage's name
Control = tuple[str, int, str]


@dataclass(frozen=True)
class Measured:
    """The records of a study.

    Attributes:
        records: of each seed.
        techniques: in the recipe's order.
        engine: whose figures count; `BEST` takes the fastest of the recipe's for each variant.
        seeds: the seeds themselves.
        engines: the recipe's; the baseline is measured on the reference whether that is one of them or not.
    """

    records: Sequence[Sequence[Record]]
    techniques: Sequence[str]
    engine: str
    seeds: Sequence[int]
    engines: Collection[str]

    @cached_property
    def by_chain(self) -> dict[Chain, list[Record]]:
        """The records of each chain that every seed has, by seed."""
        of_seeds = [{tuple(r.chain): r for r in records if r.control is None} for records in self.records]
        return {
            chain: [found[chain] for found in of_seeds] for chain in of_seeds[0] if all(chain in f for f in of_seeds)
        }

    @cached_property
    def of_controls(self) -> dict[Control, list[Record | None]]:
        """The records of each control at each technique that it stands beside, by seed; None for a seed without."""
        of_seeds = [
            {(r.control, r.step, r.stage): r for r in records if r.control is not None and r.step > 0}
            for records in self.records
        ]
        return {key: [found.get(key) for found in of_seeds] for key in dict.fromkeys(k for f in of_seeds for k in f)}

    @property
    def metric(self) -> dict[str, Any]:
        """Of which metric the qualities are: its name, unit, kind and direction."""
        found = self.by_chain[()][0].primary[0]
        about = found.quality
        assert about is not None
        return {
            "metric": found.name,
            "unit": found.unit,
            "metric_kind": about.kind,
            "higher_is_better": about.higher_is_better,
        }

    @property
    def settings(self) -> list[Setting]:
        return self.by_chain[()][0].settings


@dataclass(frozen=True)
class Timing:
    """The logarithm of a ratio of latencies, its standard error, and why it cannot be trusted; None where it can."""

    log: float
    error: float
    caveat: str | None = None


class Batch:
    """The figures of every chain in one setting, each on its engine."""

    def __init__(self, measured: Measured, setting: Setting):
        self.setting, self.records = setting, {}
        self.engine: dict[Chain, str] = {}
        for chain, records in measured.by_chain.items():
            chosen = _engine(records, setting, measured)
            if chosen is not None:
                self.engine[chain], self.records[chain] = chosen, records
        self.values = {chain: self._values(chain) for chain in self.records}
        # chains whose timing cannot be trusted, and why: no effect on latency is made of them
        self.in_doubt: dict[Chain, str] = {}
        self.costs = {"latency": self._latencies()}
        for name in (*COUNTED, *NOT_REPEATED):
            found = {chain: self._figure(chain, name) for chain in self.records}
            if all(costs is not None for costs in found.values()):
                self.costs[name] = {chain: costs for chain, costs in found.items() if costs is not None}

    def effect(self, contrast: Contrast) -> dict[str, Any]:
        """A contrast of chains in the primary metric (a difference) and in each cost (a factor), as JSON.

        Latency is None where the timing of one of the chains cannot be trusted.
        """
        found = {"quality": _json(quality_effect(contrast, self.values))}
        known = {name: contrast.keys() <= costs.keys() for name, costs in self.costs.items()}
        return found | {
            name: _json(cost_effect(contrast, costs)) if known[name] else None for name, costs in self.costs.items()
        }

    def _measured(self, chain: Chain) -> list[Measurement]:
        """The primary metric of a chain, by seed."""
        here = self.setting.conditions
        found = [record.find_primary(engine=self.engine[chain], **here) for record in self.records[chain]]
        return [m for m in found if m is not None]

    def _values(self, chain: Chain) -> Values:
        values = [unpack_values(m.raw) for m in self._measured(chain)]
        is_share = all(v.dtype == np.bool_ for v in values)
        return np.stack(values).astype(np.bool_) if is_share else np.stack(values).astype(np.float64)

    def quality(self, chain: Chain) -> Estimate:
        """The primary metric of a chain's variants, with its interval over examples and seeds."""
        values, measured = self.values[chain], self._measured(chain)
        if len(measured) > 1:
            return mean_over_seeds(values.astype(np.float64))
        value = measured[0].value
        assert value is not None
        return Estimate(value, *(measured[0].ci or (-math.inf, math.inf)))

    def _latencies(self) -> dict[Chain, LogCosts]:
        """Of the chains whose timing can be trusted; the others go into `in_doubt`."""
        found = {}
        for chain in self.records:
            timed = self._latency(chain)
            caveat = next((t.caveat for t in timed if t.caveat), None)
            if caveat is None:
                found[chain] = LogCosts(np.array([t.log for t in timed]), np.array([t.error for t in timed]))
            else:
                self.in_doubt[chain] = caveat
        return found

    def _latency(self, chain: Chain) -> list[Timing]:
        """Latency over that of the baseline on its engine, from rounds that both were timed in; one a seed."""
        found = []
        for record, base in zip(self.records[chain], self.records[()], strict=True):
            if record is base:
                found.append(Timing(0.0, 0.0))
                continue
            direct = _ratio(record, self.engine[chain], self.engine[()], self.setting)
            if direct is not None:
                found.append(direct)
                continue
            # the baseline's engine was not in these rounds; the reference was, here and beside the baseline
            ours = _ratio(record, self.engine[chain], record.reference, self.setting)
            theirs = _ratio(base, self.engine[()], base.reference, self.setting)
            assert ours is not None
            assert theirs is not None
            caveat = ours.caveat or theirs.caveat
            found.append(Timing(ours.log - theirs.log, math.hypot(ours.error, theirs.error), caveat))
        return found

    def _figure(self, chain: Chain, name: str) -> LogCosts | None:
        values = []
        for record, base in zip(self.records[chain], self.records[()], strict=True):
            ours, theirs = (_value(r, name, self.engine[c], self.setting) for r, c in ((record, chain), (base, ())))
            if not ours or not theirs:
                return None
            values.append(math.log(ours / theirs))
        error = math.nan if name in NOT_REPEATED and chain else 0.0
        return LogCosts(np.array(values), np.full(len(values), error))


def summarize(measured: Measured, shapley: bool) -> list[dict[str, Any]]:
    """One entry for each setting: variants, margins over controls, total, attribution, interactions and orders.

    Args:
        measured: the records.
        shapley: whether all subsets were to be measured; else each technique is charged by leaving it out.
    """
    return [_summary(measured, Batch(measured, setting), shapley) for setting in measured.settings]


def _summary(measured: Measured, batch: Batch, shapley: bool) -> dict[str, Any]:
    techniques, whole = measured.techniques, tuple(measured.techniques)
    place = {name: n for n, name in enumerate(techniques)}
    in_order = {frozenset(c): c for c in batch.records if list(c) == sorted(c, key=place.__getitem__)}

    def chains(weights: Mapping[frozenset[str], float]) -> Contrast:
        return {in_order[subset]: weight for subset, weight in weights.items()}

    found: dict[str, Any] = {
        "batch_size": batch.setting.batch_size,
        "sequence_length": batch.setting.sequence_length,
        "workload": batch.setting.workload,
        "variants": [_variant(batch, chain) for chain in sorted(batch.records, key=lambda c: (len(c), c))],
        "controls": _margins(measured, batch),
        "in_doubt": [{"chain": list(c), "engine": batch.engine[c], "caveat": why} for c, why in batch.in_doubt.items()],
    }
    if whole not in batch.records:
        return found | {"total": None, "attribution": _refused("the whole chain has no figures"), "interactions": []}
    return found | {
        "total": batch.effect({whole: 1.0, (): -1.0}),
        "attribution": _attribution(batch, techniques, in_order, chains, shapley),
        "interactions": [
            {"techniques": list(pair), **batch.effect(chains(weights))}
            for pair, weights in interaction_weights(techniques, in_order).items()
        ],
        "orders": _orders(batch, whole),
        "order_pairs": _order_pairs(batch, whole),
    }


def _attribution(
    batch: Batch,
    techniques: Sequence[str],
    in_order: Mapping[frozenset[str], Chain],
    chains: Callable[..., Contrast],
    shapley: bool,
) -> dict[str, Any]:
    possible = math.factorial(len(techniques))
    weights = shapley_weights(techniques, in_order) if shapley else None
    if weights is None:
        left_out = leave_one_out_weights(techniques, in_order)
        reason = "too few subsets for Shapley values: these are the whole chain less the chain without it"
        return _refused(reason, left_out, batch, chains)
    averaged = num_orders(techniques, in_order)
    caveat = (
        None if averaged == possible else f"averaged over the {averaged} of {possible} orders of joining that can run"
    )
    return {
        "method": "shapley",
        "sums_to_total": True,
        "orders_averaged": averaged,
        "orders_possible": possible,
        "reason": caveat,
        "effects": [{"technique": t, **batch.effect(chains(w))} for t, w in weights.items()],
    }


def _refused(reason: str, weights: Any = None, batch: Batch | None = None, chains: Any = None) -> dict[str, Any]:
    effects = [{"technique": t, **batch.effect(chains(w))} for t, w in (weights or {}).items()] if batch else []
    return {
        "method": "leave_one_out",
        "sums_to_total": False,
        "orders_averaged": 0,
        "orders_possible": None,
        "reason": reason,
        "effects": effects,
    }


def _orders(batch: Batch, whole: Chain) -> list[dict[str, Any]]:
    """Every order of the whole chain that was run, against the recipe's own."""
    others = [c for c in batch.records if c != whole and sorted(c) == sorted(whole)]
    return [{"chain": list(c), "engine": batch.engine[c], **batch.effect({c: 1.0, whole: -1.0})} for c in others]


def _order_pairs(batch: Batch, whole: Chain) -> list[dict[str, Any]]:
    """For two techniques, orders in which the recipe's first comes later against the rest: what turning them does."""
    orders = [c for c in batch.records if sorted(c) == sorted(whole)]
    found = []
    for first, second in combinations(whole, 2):
        turned = [c for c in orders if c.index(second) < c.index(first)]
        kept = [c for c in orders if c not in turned]
        if turned and kept:
            contrast = dict.fromkeys(turned, 1 / len(turned)) | dict.fromkeys(kept, -1 / len(kept))
            found.append({"first": second, "then": first, **batch.effect(contrast)})
    return found


def _variant(batch: Batch, chain: Chain) -> dict[str, Any]:
    against = batch.effect({chain: 1.0, (): -1.0}) if chain else None
    return {
        "chain": list(chain),
        "engine": batch.engine[chain],
        "quality": _json(batch.quality(chain)),
        "variants": [record.variant for record in batch.records[chain]],
        "against_baseline": against,
    }


def _margins(measured: Measured, batch: Batch) -> list[dict[str, Any]]:
    """By how much the recipe's chain is better than each control at each technique, over several seeds."""
    if len(measured.seeds) < 2:
        return []
    return [_margin(measured, batch, control, others) for control, others in measured.of_controls.items()]


def _margin(measured: Measured, batch: Batch, control: Control, others: Sequence[Record | None]) -> dict[str, Any]:
    name, step, stage = control
    chain = tuple(measured.techniques[:step])
    engine = batch.engine.get(chain)
    pairs: dict[int, tuple[Values, Values]] = {}
    for seed, own, other in zip(measured.seeds, batch.records.get(chain, ()), others, strict=False):
        pair = _judged_alike(own, other, engine=engine, **batch.setting.conditions) if other else None
        if pair is not None:
            pairs[seed] = pair
    margin = difference_over_seeds(*map(np.stack, zip(*pairs.values(), strict=True))) if pairs else None
    return {
        "control": name,
        "stage": stage,
        "step": step,
        "engine": engine,
        "seeds": list(pairs),
        "seeds_without": [seed for seed in measured.seeds if seed not in pairs],
        "quality": _json(margin) if margin else None,
    }


def _judged_alike(own: Record, other: Record, **here: Any) -> tuple[Values, Values] | None:
    """The values of both on the same examples, if they were judged on the same."""
    ours = own.find_primary(**here)
    if ours is None:
        return None
    theirs = other.find(ours.name, **here, split=ours.conditions["split"])
    return None if theirs is None or theirs.n != ours.n else (unpack_values(ours.raw), unpack_values(theirs.raw))


def _engine(records: Sequence[Record], setting: Setting, measured: Measured) -> str | None:
    """The engine whose figures count for a chain, the same for all seeds; None if it runs on none that counts.

    The fastest is that of the timings that can be trusted, where there are any.
    """
    shared = [
        m.conditions["engine"]
        for m in records[0].primary
        if setting in records[0].settings_of(m) and m.conditions["engine"] in measured.engines
    ]
    if measured.engine != BEST:
        return measured.engine if measured.engine in shared else None
    ratios = {}
    for engine in shared:
        found = [t for record in records if (t := _ratio(record, engine, record.reference, setting)) is not None]
        if len(found) == len(records):
            ratios[engine] = any(t.caveat for t in found), float(np.mean([t.log for t in found]))
    return min(ratios, key=ratios.__getitem__) if ratios else None


def _ratio(record: Record, engine: str, base: str, setting: Setting) -> Timing | None:
    """A variant's latency over the baseline's on an engine; None if they were not timed together."""
    ours = record.find("latency", of="variant", engine=engine, **setting.conditions)
    theirs = record.beside(ours, base)
    if ours is None or theirs is None:
        return None
    if theirs is ours:
        return Timing(0.0, 0.0, timing_caveat([ours], []))
    found = ratio_of_medians(np.asarray(ours.raw), np.asarray(theirs.raw))
    return Timing(math.log(found.value), log_error(found), timing_caveat([ours, theirs], [found.ci]))


def _value(record: Record, name: str, engine: str, setting: Setting) -> float | int | None:
    """A figure in a setting on an engine; one that no engine changes; or one that no length changes either."""
    places = ({"engine": engine, **setting.conditions}, {"engine": None, **setting.length}, {"engine": None})
    found = next((m for place in places if (m := record.find(name, **place)) is not None), None)
    return found.value if found else None


def _json(estimate: Estimate) -> dict[str, Any]:
    known = math.isfinite(estimate.low) and math.isfinite(estimate.high)
    return {"value": estimate.value, "ci": estimate.ci if known else None}
