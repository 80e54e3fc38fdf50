"""What can be cut from a model, found once and asked many times."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from optkit.core.calls import Inputs
from optkit.core.checks import check_pattern
from optkit.core.errors import UserError
from optkit.models.stacks import find_stacks
from optkit.prune.cut.attributes import build_plan
from optkit.prune.cut.blockers import WholeTable, blockers
from optkit.prune.cut.criteria import NORMS, Criterion, Importance, LossFn, normalize
from optkit.prune.cut.parts import parts_of
from optkit.prune.cut.plan import CutPlan
from optkit.prune.cut.selection import Meter, macs_meter, params_meter
from optkit.prune.cut.trial import Probe
from optkit.prune.cut.units import Units
from optkit.prune.cut.verify import evaluating, repeats
from optkit.prune.trace.labels import Resolved
from optkit.prune.trace.propagate import walk
from optkit.prune.trace.recorder import Recording, record
from optkit.prune.trace.rules.dispatch import has_rule
from optkit.prune.trace.values import Trace
from optkit.prune.trace.wrappers import unwrapped

log = logging.getLogger(__name__)


class Analysis:
    """A traced model whose units can be scored, metered and cut.

    Args:
        model: the dense model; it is not touched.
        inputs: example inputs.
        protect: patterns of module names whose parameters stay whole.
        parts: of `optkit.prune.options.PARTS`, those that are cut; None for all.

    Attributes:
        trace: what the walk over the operators found.
        resolved, units: what can be cut, as far as the cuts that were tried have shown.
        meters: the cost of a cut by the name of the budget.

    Raises:
        UserError: for a pattern that matches nothing, a model that cannot be traced or in which nothing can be cut.
    """

    trace: Trace
    resolved: Resolved
    units: Units
    meters: dict[str, Meter]

    def __init__(
        self, model: nn.Module, inputs: Inputs, protect: Sequence[str] = (), parts: Sequence[str] | None = None
    ):
        self.model = unwrapped(model)
        self._parts = parts
        self._blocks = (
            [] if parts is None else [b for stack in find_stacks(self.model, inputs) for b in stack.block_paths()]
        )
        self.trace = trace_model(self.model, inputs, protect)
        self._probe = Probe(self.model, inputs, self.trace)
        self._resolve()
        if self.trace.random and not repeats(self.model, inputs, seeds=(0, 1)):
            drawn = ", ".join(dict.fromkeys(self.trace.random))
            text = "two runs of %s on the same inputs differ in evaluation mode: %s; what reaches these stays whole"
            log.warning(text, type(self.model).__name__, drawn)

    def _resolve(self) -> None:
        self.resolved, self.units = self._probe.resolve()
        while self._parts is not None and (others := self._other_parts()):
            self.trace.space.freeze(np.flatnonzero(self.units.in_groups(others)), "parts")
            self.resolved, self.units = self._probe.resolve()
        if self.units.count == 0:
            fix = "print(optkit.prune.kept_whole(model, example_inputs)) lists what stays whole, and why"
            raise UserError(f"nothing in this model can be cut, because of {self.whole().summary()}", fix=fix)
        shapes = {name: tuple(p.shape) for name, p in self.model.named_parameters()}
        self.meters = {
            "params": params_meter(self.units, self.trace, shapes),
            "macs": macs_meter(self.units, self.trace),
        }

    def _other_parts(self) -> list[int]:
        """The groups that stay whole because of the part that they are."""
        assert self._parts is not None
        found = parts_of(self.units, self.trace, self._blocks)
        return [group for group, part in enumerate(found) if part not in self._parts]

    def whole(self) -> WholeTable:
        """What stays whole, and why, as far as the cuts that were tried have shown."""
        return blockers(self.trace, self.resolved, {name: p.numel() for name, p in self.model.named_parameters()})

    def keep_whole(self, groups: Sequence[int], reason: str) -> None:
        """Leave groups of units out of what can be cut."""
        if groups:
            self.trace.space.freeze(np.flatnonzero(self.units.in_groups(groups)), reason)
            self._resolve()

    def importance(
        self, criterion: str | Criterion, batches: Iterable[Any], loss_fn: LossFn | None, seed: int
    ) -> Importance:
        """What the weights are worth under a criterion, for :meth:`scores`."""
        dims = {
            name: [d for d, axis in enumerate(axes) if axis is not None] for name, axes in self.trace.params.items()
        }
        with evaluating(self.model):
            return Importance(criterion, dims, self.model, batches, loss_fn, seed, self.trace.norms)

    def scores(self, importance: Importance) -> np.ndarray:
        """The importance of every unit as it now stands, comparable between groups."""
        scores = importance.of(self.units)
        return normalize(self.units, scores**2 if importance.criterion in NORMS else scores)

    def plan(self, removed: np.ndarray) -> CutPlan:
        """The plan that cuts ``removed`` (bool per unit), not tried."""
        return build_plan(self.model, self.trace, self.units, removed, self._probe.guesses)

    def cut(self, removed: np.ndarray) -> tuple[CutPlan, nn.Module] | None:
        """The plan and the cut model, or None if trying it showed that less can be cut: units are others then."""
        if self._probe.learn(self.resolved, self.units, removed):
            self._resolve()
            return None
        return self._probe.latest


def kept_whole(model: nn.Module, example_inputs: Inputs, protect: Sequence[str] = ()) -> WholeTable:
    """What :func:`~optkit.prune.prune_structured` leaves whole in a model, and why; ``print`` shows a table.

    Nothing is cut here. Sizes written out in the model's code show in a cut only, and then in ``plan.frozen``.

    Args:
        model: any module; it is not touched.
        example_inputs: a tuple of arguments or a dict of keyword arguments, on the model's device.
        protect: patterns of module names whose parameters stay whole.

    Raises:
        UserError: for a pattern that matches nothing, or a model that cannot be traced.
    """
    model = unwrapped(model)
    trace = trace_model(model, example_inputs, protect)
    return blockers(trace, trace.space.resolve(), {name: p.numel() for name, p in model.named_parameters()})


def protected_tensors(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Names of the parameters and buffers of the modules that match, and of those inside them."""
    modules = [name for name, _ in model.named_modules() if name]
    shielded: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        shielded.update(check_pattern("protect", pattern, modules))
    return [t for t, _ in named_tensors(model) if any(t.startswith(m + ".") for m in shielded)]


def named_tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Parameters and buffers under all their names."""
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def trace_model(model: nn.Module, inputs: Inputs, protect: Sequence[str] = ()) -> Trace:
    """Walk a model whose modules of certain names stay whole.

    Raises:
        UserError: for a pattern that matches nothing, or a model that cannot be traced.
    """
    shielded = protected_tensors(model, protect)
    with evaluating(model):
        trace = _walk_all(model, inputs)
    for name in shielded:
        for axis in trace.params.get(trace.aliases[name], ()):
            trace.space.freeze(axis, "protect")
    return trace


def _walk_all(model: nn.Module, inputs: Inputs) -> Trace:
    """Walk what runs in evaluation, and in training too if there are parameters that evaluation never reads."""
    first: dict[int, str] = {}
    aliases = {name: first.setdefault(id(tensor), name) for name, tensor in named_tensors(model)}
    evaluation, training = record(model, inputs, has_rule), None
    spared: set[tuple[str, int]] = set()
    while True:  # what must not become zero is known after a walk, and decides what is zero in the next
        trace = Trace(aliases=aliases, spared=set(spared))
        walk(evaluation, trace)
        idle = sorted({name for name, _ in model.named_parameters()} - {n for n, count in trace.uses.items() if count})
        if idle and not spared:
            training = _record_training(model, inputs, idle)
        if training is not None:
            macs, calls = list(trace.macs), list(trace.calls)
            walk(training, trace, training=True)
            trace.macs, trace.calls = macs, calls
        if trace.spared == spared:
            break
        spared = trace.spared
    for name, axes in trace.params.items():
        if not trace.uses[name]:
            trace.params[name] = [None] * len(axes)
    return trace


def _record_training(model: nn.Module, inputs: Inputs, idle: Sequence[str]) -> Recording | None:
    """What a model in evaluation mode runs in training mode, or None, if it cannot."""
    model.train()
    try:
        return record(model, inputs, has_rule)
    except UserError as error:
        names = ", ".join(idle[:3]) + (f" and {len(idle) - 3} more" if len(idle) > 3 else "")
        log.warning("evaluation does not use %s, and training mode cannot be traced; they stay whole: %s", names, error)
        return None
    finally:
        model.eval()
