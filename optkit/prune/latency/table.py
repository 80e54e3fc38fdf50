"""How long each block of a model takes on an engine with the channels it keeps; measured once a machine."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from optkit.core.cache import cache_dir, read_json, write_json
from optkit.core.calls import ERRORS
from optkit.core.engine import Engine
from optkit.core.errors import StageError, first_line
from optkit.core.locks import exclusive
from optkit.core.progress import track
from optkit.core.source_digest import code_of_module
from optkit.core.turns import timing_turn
from optkit.core.variant import Variant
from optkit.measure.alone import PASSES, Timed, machine_key, time_session
from optkit.prune.cut.units import Units
from optkit.prune.latency.blocks import Block, find_blocks
from optkit.prune.trace.rules.dispatch import operator_name
from optkit.prune.trace.values import Trace

log = logging.getLogger(__name__)

SHARES = (1.0, 0.5, 0.125)  # of the channels on either side; a product is bilinear in its sides, so few do
NOTHING = Variant("", None, frozenset({"float"}), {})


class LatencyTable:
    """The cost of a cut in ms: for every block what a table of its shape says, read off between measured sizes.

    A block (a convolution or matrix product with what an engine fuses behind it) is compiled and timed alone with 1,
    1/2 and 1/8 of the channels on either side, at multiples of 8 where it is wide. Equal blocks share a table; tables
    are kept in the cache under everything that decides them. A block that cannot be run cut (a size written out in its
    code) is taken to cost in proportion to the numbers it reads and writes.

    Args:
        units: what can be cut.
        trace: the walked graph.
        engine: where to time.
        threads: torch threads, already set.
        channels_last: whether activations ``(N, C, H, W)`` lie in memory as ``(N, H, W, C)``.

    Attributes:
        total: ms of the uncut model, as a sum over its blocks.
        modelled: how many blocks have a size that could not be measured.
        measured: how many tables were measured now and not found in the cache.
    """

    def __init__(self, units: Units, trace: Trace, engine: Engine, threads: int, channels_last: bool):
        self._units, self._engine, self._channels_last = units, engine.for_trials(), channels_last
        self._where = machine_key(self._engine, threads) | {"table": code_of_module(__name__)}
        self.blocks = find_blocks(trace, units)
        signatures = [block.signature(units, channels_last) for block in self.blocks]
        different = dict(zip(signatures, self.blocks, strict=True))
        tables = self._kept(different)
        self.measured = 0
        if len(tables) < len(different):
            lock = self._path("").with_suffix(".lock")  # one for all tables of an engine here
            with exclusive(lock, f"timing blocks on {self._engine.name}"):
                tables = self._kept(different)
                with torch.random.fork_rng(devices=[]):  # the blocks' weights and inputs are drawn
                    new = self._measure({s: block for s, block in different.items() if s not in tables})
                for signature, table in new.items():
                    kept = table | {"where": self._where, "signature": signature}
                    write_json(self._path(signature), kept, "OPTKIT_CACHE")
            tables |= new
            self.measured = len(new)
        self._tables = [tables[signature] for signature in signatures]
        self.modelled = sum(table["modelled"] > 0 for table in self._tables)
        sides = [(number, u) for number, block in enumerate(self.blocks) for side in block.sides for u in side]
        owner = [2 * n + s for n, block in enumerate(self.blocks) for s in (0, 1) for _ in block.sides[s]]
        counts = [u.size for _, u in sides]
        self._size = np.bincount(owner, counts, minlength=2 * len(self.blocks))
        units_of = np.concatenate([np.zeros(0, np.int64), *(u for _, u in sides)])
        owners = np.repeat(np.array(owner, np.int64), counts)
        self._unit, self._owner = units_of[units_of >= 0], owners[units_of >= 0]
        self.total = self(np.zeros(units.count, bool))

    def __call__(self, removed: np.ndarray) -> float:
        """ms with ``removed`` (bool per unit) cut."""
        gone = np.bincount(self._owner, removed[self._unit], minlength=self._size.size)
        kept = (1 - gone / np.maximum(self._size, 1)).reshape(-1, 2)
        return float(sum(read(table, *shares) for table, shares in zip(self._tables, kept, strict=True)))

    def _kept(self, signatures: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The tables that are in the cache."""
        return {s: table for s in signatures if whole(table := read_json(self._path(s)))}

    def _path(self, signature: str) -> Path:
        key = json.dumps(self._where, sort_keys=True) + signature
        return cache_dir() / "latency" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"

    def _measure(self, blocks: dict[str, Block]) -> dict[str, dict[str, Any]]:
        """Tables of these blocks: compiled first, then timed in passes, so that no disturbance hits all of one."""
        grids = {}
        for signature, block in track(blocks.items(), f"compiling blocks for {self._engine.name}", len(blocks)):
            ladders = [block.ladder(side, SHARES, self._units) for side in (0, 1)]
            grids[signature] = [[self._session(block, a | b) for b in ladders[1]] for a in ladders[0]]
        sessions = [session for grid in grids.values() for row in grid for session in row if session is not None]
        calling = self._compile(*_nothing())
        with timing_turn(f"timing blocks on {self._engine.name}"):
            for _ in range(PASSES if sessions else 0):
                for timed in (calling, *sessions):
                    timed.ms = min(timed.ms, time_session(timed.session, timed.inputs))
        return {signature: self._table(blocks[signature], grid, calling.ms) for signature, grid in grids.items()}

    def _table(self, block: Block, grid: list[list[Timed | None]], calling_ms: float) -> dict[str, Any]:
        """ms of each call less what calling costs, with the points that do not run filled in."""
        ladders = [block.ladder(side, SHARES, self._units) for side in (0, 1)]
        dense = np.zeros(self._units.count, bool)
        whole_ms = max(grid[-1][-1].ms - calling_ms, 0.0) if grid[-1][-1] else 0.0
        per_element = whole_ms / block.elements(self._units, dense)
        ms = [
            [
                max(timed.ms - calling_ms, 0.0) if timed else per_element * block.elements(self._units, a | b)
                for b, timed in zip(ladders[1], row, strict=True)
            ]
            for a, row in zip(ladders[0], grid, strict=True)
        ]
        kept = [[block.kept(self._units, cut)[side] for cut in ladder] for side, ladder in enumerate(ladders)]
        modelled = sum(timed is None for row in grid for timed in row)
        return {
            "block": _names(block),
            "in": kept[0],
            "out": kept[1],
            "ms": np.round(ms, 6).tolist(),
            "modelled": modelled,
        }

    def _session(self, block: Block, removed: np.ndarray) -> Timed | None:
        try:
            return self._compile(*block.build(self._units, removed, self._channels_last))
        except (*ERRORS, StageError) as error:
            text = "a block is estimated from its size, as it does not run (%s): %s: %s"
            log.info(text, ", ".join(_names(block)), type(error).__name__, first_line(error))
            return None

    def _compile(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Timed:
        session = self._engine.compile(module, NOTHING, inputs)
        session(*inputs)
        return Timed(session, inputs)


def _names(block: Block) -> list[str]:
    return [operator_name(call.target) for call in block.calls]


def _nothing() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A block that does next to nothing: what calling any block costs."""
    graph = torch.fx.Graph()
    graph.output((graph.call_function(torch.ops.aten.relu.default, (graph.placeholder("x"),)),))
    return torch.fx.GraphModule(nn.Module(), graph), (torch.rand(1, 8),)


def read(table: dict[str, Any], share_in: float, share_out: float) -> float:
    """ms at these shares of the channels on either side: bilinear between what was measured, constant beyond."""
    rows = [np.interp(share_out, table["out"], row) for row in table["ms"]]
    return float(np.interp(share_in, table["in"], rows))


def whole(table: Any) -> bool:
    """Whether this is a table as :class:`LatencyTable` writes it."""
    if not isinstance(table, dict) or not isinstance(table.get("modelled"), int):
        return False
    try:
        ms = np.array(table["ms"], np.float64)
        a, b = np.array(table["in"], np.float64), np.array(table["out"], np.float64)
    except (KeyError, TypeError, ValueError):
        return False
    return bool(a.size and b.size and ms.shape == (a.size, b.size) and np.isfinite(ms).all() and (ms >= 0).all())
