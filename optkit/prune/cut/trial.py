"""Find the labels that can really be cut, by trying: hard-coded sizes show only when the code runs."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from torch import nn

from optkit.core.calls import Inputs, few_tokens
from optkit.core.errors import StageError, UserError
from optkit.prune.cut.attributes import Guesses, Key, all_attributes, build_plan
from optkit.prune.cut.plan import CutPlan
from optkit.prune.cut.units import Units, find_units
from optkit.prune.cut.verify import (
    TOLERANCE,
    Run,
    check_gradient,
    deviation,
    diverging_module,
    repeats,
    run,
)
from optkit.prune.trace.labels import Resolved
from optkit.prune.trace.values import Trace

MAX_GUESSES = 24  # combinations of attribute meanings tried per class

log = logging.getLogger(__name__)


class Probe:
    """Resolves labels, tries cuts, and learns from what fails.

    After a failure the attributes of the failing module's class (then of its parent's) are read in another way, where
    their values match several sizes; when that is exhausted, the labels that such modules cut are frozen.

    Args:
        model: the dense model.
        inputs: example inputs.
        trace: what the walk found; frozen labels are added to it.

    Attributes:
        latest: the plan and the model of the last cut that held.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, trace: Trace):
        self.model, self.inputs, self.trace = model, inputs, trace
        self.fewer = few_tokens(model, inputs)
        self.guesses = Guesses()
        self.latest: tuple[CutPlan, nn.Module] | None = None
        self._tries: dict[str, Iterator[dict[Key, int]]] = {}

    def resolve(self) -> tuple[Resolved, Units]:
        """The classes of the labels as far as is known, and what can be cut."""
        resolved = self.trace.space.resolve()
        return resolved, find_units(self.trace, resolved)

    def learn(self, resolved: Resolved, units: Units, removed: np.ndarray) -> bool:
        """Try a cut; if it fails, settle how attributes are read, or else freeze labels and return True.

        Args:
            resolved: the classes of the labels.
            units: what can be cut.
            removed: the cut, a bool per unit.

        Raises:
            StageError: if a failure cannot be traced to any label, or no gradient flows through the cut model.
        """
        if not removed.any():
            return False
        plan = build_plan(self.model, self.trace, units, removed, self.guesses)
        cut = plan.apply(self.model)
        failed = False
        while found := self._trial(plan, cut, units, removed):
            log.debug("a trial cut fails in %s: %s", found.where or "the model", found.problem)
            if not self._guess_again(found.where):
                log.info("less can be cut: %s fails with %s", found.where or "the model", found.problem)
                if not self._freeze_around(found.where, resolved, units, removed):
                    raise StageError(f"a trial cut fails in {found.where or 'the model'}: {found.problem}")
                return True
            # another reading changes attributes alone, which is far cheaper than another cut
            attributes = all_attributes(self.model, self.trace, units, removed, self.guesses)
            plan, earlier, failed = replace(plan, attributes=attributes), plan, True
            plan.apply_again(cut, earlier)
        # a model that failed may have kept something of it
        self.latest = plan, plan.apply(self.model) if failed else cut
        return False

    def _trial(self, plan: CutPlan, cut: nn.Module, units: Units, removed: np.ndarray) -> Run | None:
        """Where and how the cut model fails, or None if it does not."""
        found = run(cut, self.fewer)
        if found.problem:
            return found
        if deviation(self.model, plan, self.fewer, found.outputs) < TOLERANCE:
            check_gradient(cut, found.outputs)
            return None
        if not self._repeats:
            fix = "draw random numbers by torch, or none in evaluation mode"
            message = f"two runs of {type(self.model).__name__} on the same inputs differ: no cut can be checked"
            raise UserError(message, key="model", fix=fix)
        where = diverging_module(self.model, cut, plan, self.inputs, self.trace, units, removed)
        return Run([], where, "other outputs")

    @functools.cached_property
    def _repeats(self) -> bool:
        return repeats(self.model, self.inputs)

    def _guess_again(self, where: str) -> bool:
        """Move on to the next reading of the attributes of the failing module or of the one that holds it."""
        for path in dict.fromkeys([where, where.rpartition(".")[0]]):
            kind = type(self.model.get_submodule(path)).__name__
            options = self.guesses.options.get(kind)
            if not options:
                continue
            if kind not in self._tries:
                combined = itertools.product(*([(key, k) for k in range(count)] for key, count in options.items()))
                self._tries[kind] = (dict(picks) for picks in itertools.islice(combined, MAX_GUESSES))
            picks = next(self._tries[kind], None)
            if picks is not None:
                self.guesses.picked.update(picks)
                return True
            for key in options:
                self.guesses.picked.pop(key, None)
        return False

    def _freeze_around(self, where: str, resolved: Resolved, units: Units, removed: np.ndarray) -> bool:
        """Freeze labels that modules of the failing one's class cut, else those inside them, else those around."""
        names = [name for name, _ in self.model.named_modules()]
        outwards = [*dict.fromkeys([where.rsplit(".", k)[0] for k in range(where.count(".") + 1)]), ""]
        for path, inside in [(path, inside) for path in outwards for inside in (False, True)]:
            kind = type(self.model.get_submodule(path))
            leaf = not any(self.model.get_submodule(path).children())
            alone = not path or (leaf and kind.__module__.startswith("torch.nn.modules."))
            same = {path} if alone else {name for name in names if type(self.model.get_submodule(name)) is kind}
            if inside:
                same = {name for name in names if any(name.startswith(outer + "." if outer else "") for outer in same)}
            for candidates in self._suspects(resolved, same):
                cut = [axis for axis in candidates if removed[(u := units.of(axis))[u >= 0]].any()]
                for axis in cut:
                    self.trace.space.freeze(axis, f"size written out in {kind.__name__}")
                if cut:
                    self._tries.pop(kind.__name__, None)
                    return True
        return False

    def _suspects(self, resolved: Resolved, paths: set[str]) -> Iterator[list[np.ndarray]]:
        """Labels to freeze, the least drastic first: padding, chosen axes of views, sizes, inputs, everything."""
        products = zip(self.trace.space.products, resolved.chosen, strict=True)
        yield [axis for path, axis in self.trace.pads if path in paths]
        yield [p.axes[chosen] for p, chosen in products if p.where in paths and chosen >= 0]
        yield [axis for path, _, axis in self.trace.sizes if path in paths]
        yield [axis for path, name, axis in self.trace.attributes if path in paths and name.startswith("in_")]
        yield [axis for path, axes in self.trace.touched if path in paths for axis in axes]
