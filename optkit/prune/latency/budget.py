"""A budget of milliseconds: cuts chosen by a table of blocks, and corrected by what the whole model takes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from optkit.core.calls import Inputs, call
from optkit.core.compat import torch_trees as pytree
from optkit.core.engine import Engine, Session
from optkit.core.errors import UserError
from optkit.core.nested import outputs_of
from optkit.core.seeds import derive_seed
from optkit.core.statistics import Estimate, median, ratio_of_medians
from optkit.core.threads import use_threads
from optkit.engines import ENGINES
from optkit.measure.alone import corrected
from optkit.measure.latency import interleaved
from optkit.prune.cut.analysis import Analysis
from optkit.prune.cut.plan import CutPlan
from optkit.prune.cut.selection import Selector, TooSmallError, nearest
from optkit.prune.cut.verify import evaluating
from optkit.prune.latency.table import NOTHING, LatencyTable

TOLERANCE = 0.1  # of the latency asked for
CLOSE = 0.03  # of it; a cut that comes nearer is not corrected
ROUNDS = 5
SECONDS = 3.0  # of timing the dense and the cut model in turn, each round
ATTEMPTS = 3  # to time it, while the interval is wider than the tolerance
log = logging.getLogger(__name__)


@dataclass
class Reached:
    """A cut that was really made and timed.

    Attributes:
        removed: a bool per unit.
        plan, model: the cut.
        share: of the dense latency that the table says is left.
        ratio: latency of the cut model over that of the dense one, timed in turn.
        before_ms, after_ms: of these two.
    """

    removed: np.ndarray
    plan: CutPlan
    model: nn.Module
    share: float
    ratio: Estimate
    before_ms: Estimate
    after_ms: Estimate


class LatencyBudget:
    """Cuts a model down to a share of its latency on an engine of this machine.

    The table ranks cuts, the whole model judges them: after each choice the cut model is compiled and timed in turn
    with the dense one, and where their ratio misses the goal, the share asked of the table is corrected by
    interpolation between what it said and what was measured so far.

    Args:
        analysis: of the model.
        inputs: example inputs, on the CPU; their batch size is the one that is timed.
        amount: share of the latency to remove.
        engine: a name of ``optkit.engines.ENGINES``.
        threads: torch threads.
        seed: of the order in which models take their turns.

    Raises:
        UserError: the engine does not work here, or the inputs are not on the CPU.
    """

    def __init__(self, analysis: Analysis, inputs: Inputs, amount: float, engine: str, threads: int, seed: int):
        self._analysis, self._goal, self._threads, self._seed = analysis, 1 - amount, threads, seed
        self._engine: Engine = ENGINES.find(engine, "engine")()
        if reason := self._engine.unavailable():
            raise UserError(reason, key="engine", value=engine)
        leaves, self._spec = pytree.tree_flatten(dict(inputs) if isinstance(inputs, Mapping) else tuple(inputs))
        if any(isinstance(leaf, Tensor) and leaf.device.type != "cpu" for leaf in leaves):
            raise UserError("latency is measured on the CPU", key="budget", value="latency", fix="model.cpu()")
        self._fixed = [Tensor if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._tensors = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
        self._dense: Session | None = None
        self._table_s = 0.0

    def search(self, selector: Selector) -> tuple[CutPlan, nn.Module, np.ndarray] | None:
        """The cut whose measured latency is nearest to the goal; None if a trial showed that less can be cut.

        Raises:
            UserError: if no cut comes within 10% of the goal; a TooSmallError if even the smallest is too large.
        """
        tried: list[Reached] = []
        with use_threads(self._threads):
            table = self._table()
            for removed in self._candidates(selector, table, tried):
                cut = self._analysis.cut(removed)
                if cut is None:
                    return None
                tried.append(self._time(removed, *cut, table(removed) / table.total))
        best = self._best(tried)
        best.plan.facts = self._facts(best, table, len(tried))
        return best.plan, best.model, best.removed

    def _table(self) -> LatencyTable:
        begin = time.perf_counter()
        found = self._analysis
        table = LatencyTable(found.units, found.trace, self._engine, self._threads, self._channels_last())
        self._table_s += time.perf_counter() - begin
        return table

    def _candidates(self, selector: Selector, table: LatencyTable, tried: list[Reached]) -> Iterator[np.ndarray]:
        """Cuts to try, each chosen by what those before it took; the largest at last if all take too long."""
        share = self._goal
        for _ in range(ROUNDS):
            removed = nearest(selector, table, share * table.total)
            if not removed.any() or any(np.array_equal(removed, one.removed) for one in tried):
                break
            yield removed
            if self._miss(tried[-1]) < CLOSE:
                return
            share = corrected(self._goal, [(one.share, one.ratio.value) for one in tried])
        largest = selector.cut(selector.most)
        if largest.any() and all(one.ratio.value > self._goal * (1 + TOLERANCE) for one in tried):
            yield largest

    def _miss(self, one: Reached) -> float:
        return abs(one.ratio.value / self._goal - 1)

    def _time(self, removed: np.ndarray, plan: CutPlan, model: nn.Module, share: float) -> Reached:
        """Times the cut model; again where something else kept the machine so busy that the interval is of no use."""
        if self._dense is None:
            self._dense = self._compile(self._analysis.model)
        sessions = {"dense": self._dense, "cut": self._compile(model)}
        found: list[Reached] = []
        with evaluating(self._analysis.model), evaluating(model):
            while len(found) < ATTEMPTS and not any(width(one.ratio) < TOLERANCE * self._goal for one in found):
                series = interleaved(sessions, self._tensors, SECONDS, derive_seed(self._seed, "turns", len(found)))
                dense, cut = series["dense"].samples, series["cut"].samples
                ratio = ratio_of_medians(cut, dense)
                found.append(Reached(removed, plan, model, share, ratio, median(dense), median(cut)))
        best = min(found, key=lambda one: width(one.ratio))
        log.info("%.1f%% of the latency is left, %.1f%% by the table", 100 * best.ratio.value, 100 * share)
        return best

    def _compile(self, model: nn.Module) -> Session:
        with evaluating(model):
            return self._engine.compile(Positional(model, self._fixed, self._spec), NOTHING, self._tensors)

    def _best(self, tried: list[Reached]) -> Reached:
        amount = round(1 - self._goal, 6)
        if not tried:
            raise TooSmallError(f"the smallest cut is far from {amount:.1%} of the latency", key="amount", value=amount)
        best = min(tried, key=self._miss)
        if self._miss(best) <= TOLERANCE:
            return best
        least = all(one.ratio.value > self._goal for one in tried)
        raise UserError(
            f"the {'least' if least else 'nearest'} reachable latency on {self._engine.name} is"
            f" {best.after_ms.value:.3g} ms of {best.before_ms.value:.3g} ms ({best.ratio.value:.1%}),"
            f" asked were {self._goal:.1%}",
            key="amount",
            value=amount,
            fix="ask for another share, protect less, or lower round_to or floor",
        )

    def _channels_last(self) -> bool:
        """Whether activations lie in memory as ``(N, H, W, C)``: the engine moves them there, or takes them so."""
        tensors = [t for t in (*self._tensors, *self._analysis.model.parameters()) if t.ndim == 4]
        moved = any(not t.is_contiguous() and t.is_contiguous(memory_format=torch.channels_last) for t in tensors)
        return moved or self._engine.channels_last

    def _facts(self, best: Reached, table: LatencyTable, rounds: int) -> dict[str, Any]:
        facts: dict[str, Any] = {"engine": self._engine.name, "threads": self._threads}
        facts["batch_size"] = len(self._tensors[0]) if self._tensors and self._tensors[0].ndim else 1
        for name, found in (("before_ms", best.before_ms), ("after_ms", best.after_ms), ("ratio", best.ratio)):
            interval = [round(x, 6) for x in found.ci] if found.ci else None
            facts |= {f"latency_{name}": round(found.value, 6), f"latency_{name}_ci": interval}
        return facts | {
            "latency_table_ms": round(table.total, 6),
            "latency_table_over_real": round(table.total / best.before_ms.value, 4),
            "latency_table_ratio": round(best.share, 6),
            "latency_blocks": len(table.blocks),
            "latency_blocks_modelled": table.modelled,
            "latency_tables_measured": table.measured,
            "latency_table_s": round(self._table_s, 3),
            "latency_rounds": rounds,
        }


class Positional(nn.Module):
    """A model called with the tensors of its inputs only; its outputs are tensors only.

    Args:
        model: any module.
        fixed: the leaves of its inputs, the type ``Tensor`` in place of every tensor.
        spec: how the leaves make up a tuple of arguments or a dict of keyword arguments.
    """

    def __init__(self, model: nn.Module, fixed: list[Any], spec: pytree.TreeSpec):
        super().__init__()
        self.model, self._fixed, self._spec = model, fixed, spec

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        """The tensors in the output of the model."""
        rest = iter(tensors)
        inputs = pytree.tree_unflatten([next(rest) if leaf is Tensor else leaf for leaf in self._fixed], self._spec)
        return outputs_of(call(self.model, inputs))


def width(found: Estimate) -> float:
    """Width of the interval."""
    return found.high - found.low
