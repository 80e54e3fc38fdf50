"""Structured pruning of any model whose operators can be traced."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from optkit.core.calls import Inputs
from optkit.core.errors import StageError, UserError
from optkit.core.loaders import Pick
from optkit.core.records import REFERENCE
from optkit.core.seeds import derive_seed
from optkit.prune.allocation import order_by_harm, unmeasured
from optkit.prune.cut.analysis import Analysis
from optkit.prune.cut.blockers import why_frozen
from optkit.prune.cut.criteria import Criterion, LossFn, data_for, weigh_by_use
from optkit.prune.cut.plan import CutPlan
from optkit.prune.cut.selection import Selector, TooSmallError, missed, select
from optkit.prune.latency.budget import LatencyBudget
from optkit.prune.options import FLOOR, SENSITIVITY, CutOptions, criterion_name
from optkit.prune.sensitivity import Sensitivity

log = logging.getLogger(__name__)


@dataclass
class Pruned:
    """A pruned model and the plan that made it."""

    module: nn.Module
    plan: CutPlan


def prune_structured(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    amount: float,
    budget: str = "params",
    criterion: str | Criterion = "l2",
    scope: str = "global",
    round_to: int | None = None,
    floor: float = FLOOR,
    floor_of: Mapping[str, int] | None = None,
    protect: Sequence[str] = (),
    parts: Sequence[str] | None = None,
    uniform: bool = False,
    engine: str | None = None,
    threads: int | None = None,
    batches: Iterable[Any] | None = None,
    inputs: Pick | None = None,
    loss_fn: LossFn | None = None,
    seed: int = 0,
    sensitivity: Sensitivity | None = None,
) -> Pruned:
    """Cut channels, heads and hidden features until a share of the budget is gone.

    Which channels must go together is found by carrying labels through the graph of operators (dependency graphs as in
    Fang et al., "DepGraph", CVPR 2023, here at the level of single channels). The cut is exact: the dense model with
    the same channels zeroed gives the same outputs. Where exactness cannot hold (features under a layer norm, model
    outputs, operators without a rule) nothing is cut, and ``plan.frozen`` says why.

    A cut by latency depends on the machine: which channels go is decided by what the blocks of the model take there
    (see :class:`~optkit.prune.latency.table.LatencyTable`), and how many by timing the cut model against the dense one
    until their ratio is right within 3%, or as near as it comes, at most 10% off; ``plan.facts`` holds what was timed.

    Args:
        model: any module; it is not touched, and the result is of the same class. Of a compiled or data-parallel model
            the module inside is cut.
        example_inputs: a tuple of arguments or a dict of keyword arguments, on the model's device.
        amount, budget, criterion, scope, round_to, floor, protect, parts, uniform, engine, threads: see
            `CutOptions`.
        floor_of: for a model that was cut before: how many units each group of ``plan.layers`` had, by its name;
            the floor is a share of that.
        batches: data, for the criteria that need it: any iterable, such as a ``DataLoader``.
        inputs: for the criterion ``activation`` without ``loss_fn``: picks the model's inputs of a batch that holds
            more, ``inputs=lambda batch: batch[0]``.
        loss_fn: ``loss_fn(model, batch)`` to a scalar, for the criteria that need it; it gets each batch whole.
        seed: of the random criterion and of ties.
        sensitivity: the model's table, measured under this criterion, for the scope of that name; groups that it lacks
            stay whole.

    Returns:
        The cut model and its plan; ``plan.apply(fresh)`` repeats the cut without a trace.

    Raises:
        UserError: for an option out of its range, a pattern that matches nothing, a share that cannot be reached, or
            a model that cannot be traced.
        StageError: if the cut model does not run.
    """
    options = CutOptions(
        amount,
        budget=budget,
        criterion=criterion,
        scope=scope,
        round_to=round_to,
        floor=floor,
        protect=protect,
        parts=parts,
        uniform=uniform,
        engine=engine,
        threads=threads,
    )
    _check_table(sensitivity, options)
    round_to = round_to or (8 if budget == "latency" else 1)
    batches, loss_fn = data_for(criterion, batches, loss_fn, inputs)
    analysis = Analysis(model, example_inputs, options.protect, options.parts)
    clock = None
    if budget == "latency":
        clock = LatencyBudget(
            analysis, example_inputs, amount, engine or REFERENCE, threads or torch.get_num_threads(), seed
        )
    importance = analysis.importance(criterion, batches, loss_fn, derive_seed(seed, "random"))
    found = None
    while found is None:  # a cut that shows hard-coded sizes is chosen again without them
        if sensitivity is not None:
            analysis.keep_whole(unmeasured(sensitivity, analysis.units), "not in the sensitivity table")
        scores = analysis.scores(importance)
        if sensitivity is not None:
            # what a channel saves of the latency follows from its neighbours; its MACs stand for it
            cost = analysis.meters.get(budget, analysis.meters["macs"])
            scores = order_by_harm(sensitivity, analysis.units, scores, cost)
        elif scope == "global" and budget != "params":
            scores = weigh_by_use(scores, *(analysis.meters[name].each(scores.size) for name in ("params", "macs")))
        selector = Selector(
            analysis.units, scores, scope, round_to, derive_seed(seed, "ties"), floor, floor_of, uniform
        )
        found = clock.search(selector) if clock else _cut(analysis, selector, options)
    plan, pruned, removed = found
    plan.frozen = why_frozen(analysis.trace, analysis.resolved)
    plan.facts = {
        "criterion": criterion_name(criterion),
        "budget": budget,
        "amount": amount,
        "scope": scope,
        "round_to": round_to,
        "floor": floor,
        "seed": seed,
    } | plan.facts
    for name, meter in analysis.meters.items():
        plan.facts |= {f"{name}_before": int(meter.total), f"{name}_after": int(meter(removed))}
    if not clock:
        _warn_if_missed(plan.facts, budget)
    count = sum(p.numel() for p in pruned.parameters())
    if count != plan.facts["params_after"]:
        raise StageError(f"the cut left {count} parameters where {plan.facts['params_after']} were planned")
    return Pruned(pruned, plan)


def _cut(analysis: Analysis, selector: Selector, options: CutOptions) -> tuple[CutPlan, nn.Module, np.ndarray] | None:
    """The plan, the cut model and what is cut; None if trying it showed that less can be cut."""
    amount, budget = options.amount, options.budget
    removed = select(selector, analysis.meters[budget], amount, budget, lambda: analysis.whole().summary())
    if not removed.any():
        raise TooSmallError(f"the smallest cut is far from {amount:.1%} of the {budget}", key="amount", value=amount)
    found = analysis.cut(removed)
    return None if found is None else (*found, removed)


def _warn_if_missed(facts: Mapping[str, Any], budget: str) -> None:
    reached = 1 - facts[f"{budget}_after"] / facts[f"{budget}_before"]
    if missed(facts["amount"], reached):
        text = "asked for %.1f%% of the %s, cut %.1f%%: channels go whole, and layers keep multiples of %d"
        log.warning(text, 100 * facts["amount"], budget, 100 * reached, facts["round_to"])


def _check_table(table: Sensitivity | None, options: CutOptions) -> None:
    criterion = criterion_name(options.criterion)
    if (options.scope == SENSITIVITY) != (table is not None):
        fix = f"scope '{SENSITIVITY}' and a table that optkit.prune.sensitivity made go together"
        raise UserError("one without the other", key="sensitivity", fix=fix)
    if table is not None and table.criterion != criterion:
        fix = f"criterion={table.criterion}, or measure the sensitivity under {criterion}"
        message = f"the table was measured under {table.criterion}, not {criterion}"
        raise UserError(message, key="criterion", value=criterion, fix=fix)
