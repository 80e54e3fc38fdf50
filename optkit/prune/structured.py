"""Structured pruning of any model that ``torch.export`` takes."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from optkit.core.checks import check_choice, check_count, check_share
from optkit.core.errors import StageError, UserError, did_you_mean
from optkit.prune.budget import Selector, macs_meter, params_meter, select
from optkit.prune.criteria import CRITERIA, NEED_DATA, normalize, score_units
from optkit.prune.graph import Inputs, Trace, export
from optkit.prune.plan import CutPlan
from optkit.prune.probe import Probe
from optkit.prune.surgery import why_frozen
from optkit.prune.verify import check_runs, evaluating
from optkit.prune.walk import walk

BUDGETS = ("params", "macs")
SCOPES = ("global", "local")


@dataclass
class Pruned:
    """A pruned model and the plan that made it."""

    model: nn.Module
    plan: CutPlan


def prune_structured(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    amount: float,
    budget: str = "params",
    criterion: str = "l2",
    scope: str = "global",
    round_to: int = 1,
    protect: Sequence[str] = (),
    batches: Iterable[Any] | None = None,
    loss_fn: Callable[[nn.Module, Any], torch.Tensor] | None = None,
    seed: int = 0,
) -> Pruned:
    """Cut channels, heads and hidden features until a share of the budget is gone.

    Which channels must go together is found by carrying labels through the exported graph (dependency graphs as in
    Fang et al., "DepGraph", CVPR 2023, here at the level of single channels). The cut is exact: the dense model with
    the same channels zeroed gives the same outputs. Where exactness cannot hold (features under a layer norm, model
    outputs, operators without a rule) nothing is cut, and ``plan.frozen`` says why.

    Args:
        model: any module; it is not touched, and the result is of the same class.
        example_inputs: a tuple of arguments or a dict of keyword arguments, on the model's device.
        amount: share of the budget to remove, in (0, 1).
        budget: ``"params"`` or ``"macs"`` (multiply-accumulates on ``example_inputs``).
        criterion: what makes a channel important, one of ``CRITERIA``.
        scope: ``"global"`` ranks all layers together, ``"local"`` cuts the same share of each.
        round_to: keep sizes at multiples of this where the layer allows.
        protect: patterns (as in :mod:`fnmatch`) of module names whose parameters stay whole.
        batches: data, for the criteria that need it.
        loss_fn: ``loss_fn(model, batch)`` to a scalar, for the criteria that need it.
        seed: of the random criterion and of ties.

    Returns:
        The cut model and its plan; ``plan.apply(fresh)`` repeats the cut without export.

    Raises:
        UserError: for an argument out of range, a pattern that matches nothing, a share that cannot be reached, a model
            that cannot be exported.
        StageError: if the cut model does not run.
    """
    check_arguments(amount, budget, criterion, scope, round_to)
    if criterion in NEED_DATA and (batches is None or loss_fn is None):
        raise UserError(
            f"criterion '{criterion}' needs data", key="criterion", value=criterion, fix="give batches and loss_fn"
        )
    shielded = protected_tensors(model, protect)
    if criterion in NEED_DATA:
        batches = list(batches or ())
    with evaluating(model):
        trace = trace_model(model, example_inputs)
    for name in shielded:
        for axis in trace.params.get(trace.aliases[name], ()):
            trace.space.freeze(axis, "protect")
    probe = Probe(model, example_inputs, trace)
    params = {name: tuple(p.shape) for name, p in model.named_parameters()}
    again = True
    while again:  # a cut that shows more hard-coded sizes than the trial did is chosen again without them
        resolved, units = probe.run()
        if units.count == 0:
            raise UserError(
                "nothing in this model can be cut", fix="every layer is an output, under a norm or protected"
            )
        with evaluating(model):
            scores = normalize(units, score_units(criterion, units, model, batches, loss_fn, seed))
        meters = {"params": params_meter(units, trace, params), "macs": macs_meter(units, trace)}
        removed = select(Selector(units, scores, scope, round_to, seed), meters[budget], amount, budget)
        again = probe.learn(resolved, units, removed)
    if probe.latest is None or not removed.any():
        raise UserError(f"the smallest cut is far from {amount:.1%} of the {budget}", key="amount", value=amount)
    plan, pruned = probe.latest
    plan.frozen = why_frozen(trace, resolved)
    plan.facts = {
        "criterion": criterion,
        "budget": budget,
        "amount": amount,
        "scope": scope,
        "round_to": round_to,
        "seed": seed,
    }
    for name, meter in meters.items():
        plan.facts |= {f"{name}_before": int(meter.total), f"{name}_after": int(meter(removed))}
    check_runs(pruned, example_inputs)
    count = sum(p.numel() for p in pruned.parameters())
    if count != plan.facts["params_after"]:
        raise StageError(f"the cut left {count} parameters where {plan.facts['params_after']} were planned")
    return Pruned(pruned, plan)


def check_arguments(amount: float, budget: str, criterion: str, scope: str, round_to: int) -> None:
    """Raise a UserError for the first argument that cannot be used."""
    check_share("amount", amount)
    check_choice("budget", budget, BUDGETS)
    check_choice("criterion", criterion, CRITERIA)
    check_choice("scope", scope, SCOPES)
    check_count("round_to", round_to)


def protected_tensors(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Names of the parameters and buffers of the modules that match, and of those inside them."""
    modules = [name for name, _ in model.named_modules() if name]
    shielded: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = fnmatch.filter(modules, pattern)
        if not found:
            raise UserError(
                f"no module matches '{pattern}'", key="protect", value=pattern, fix=did_you_mean(pattern, modules[:50])
            )
        shielded.update(found)
    return [t for t, _ in named_tensors(model) if any(t.startswith(m + ".") for m in shielded)]


def named_tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Parameters and buffers under all their names."""
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def trace_model(model: nn.Module, inputs: Inputs) -> Trace:
    """Walk the evaluation graph, and the training graph too if it has parameters that evaluation never reads."""
    first: dict[int, str] = {}
    trace = Trace(aliases={name: first.setdefault(id(tensor), name) for name, tensor in named_tensors(model)})
    walk(export(model, inputs), trace)
    idle = {name for name, _ in model.named_parameters()} - {name for name, count in trace.uses.items() if count}
    if idle:
        macs = list(trace.macs)
        model.train()
        with contextlib.suppress(UserError):  # parameters that no export reaches stay whole
            walk(export(model, inputs), trace)
        trace.macs = macs
        model.eval()
    for name, axes in trace.params.items():
        if not trace.uses[name]:
            trace.params[name] = [None] * len(axes)
    return trace
