"""How long each block of a model takes on an engine, as a function of the channels it keeps; measured once a machine."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from optkit.core.cache import cache_dir, read_json, write_json
from optkit.core.engine import Engine, Session
from optkit.core.environment import cpu
from optkit.core.errors import StageError
from optkit.core.progress import track
from optkit.core.variant import Variant
from optkit.prune.blocks import Block, find_blocks
from optkit.prune.graph import Trace
from optkit.prune.groups import Units
from optkit.prune.verify import ERRORS

SHARES = (1.0, 0.5, 0.125)  # of the channels on either side; a product is bilinear in its sides, so few do
FEWEST_CALLS, MOST_CALLS, ENOUGH_MS = 8, 200, 60.0
FORMAT = 1
NOTHING = Variant("", None, frozenset({"float"}), {})


class LatencyTable:
    """The cost of a cut in ms: for every block what a table of its shape says, read off between measured sizes.

    A block (a convolution or matrix product with what an engine fuses behind it) is compiled and timed alone with 1,
    1/2 and 1/8 of the channels on either side, at multiples of 8. Equal blocks share a table; tables are kept in the
    cache under everything that decides them. A block that cannot be run cut (a size written out in its code) is taken
    to cost in proportion to the numbers it reads and writes.

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
        self._units, self._engine, self._channels_last = units, _quick(engine), channels_last
        self._where = {
            "format": FORMAT,
            "cpu": cpu(),
            "torch": torch.__version__,
            "engine": engine.name,
            "options": asdict(engine),
            "threads": threads,
        }
        self.blocks = find_blocks(trace, units)
        self.measured = 0
        tables: dict[str, dict] = {}
        self._call_ms: float | None = None
        signatures = [block.signature(units, channels_last) for block in self.blocks]
        first = dict(zip(reversed(signatures), reversed(self.blocks), strict=True))
        for signature, block in track(first.items(), f"latency of blocks on {engine.name}", len(first)):
            tables[signature] = self._table(signature, block)
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

    def _table(self, signature: str, block: Block) -> dict[str, Any]:
        key = json.dumps(self._where, sort_keys=True) + signature
        path = cache_dir() / "latency" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
        if not whole(table := read_json(path)):
            table = self._measure(block)
            self.measured += 1
            names = [str(call.target).removeprefix("aten.").split(".")[0] for call in block.calls]
            write_json(path, table | {"block": names, "where": self._where, "signature": signature}, "OPTKIT_CACHE")
        return table

    def _measure(self, block: Block) -> dict[str, Any]:
        ladders = [block.ladder(side, SHARES, self._units) for side in (0, 1)]
        dense = np.zeros(self._units.count, bool)
        whole_ms = self._time(block, dense) or 0.0
        ms, modelled = [], 0
        for a in ladders[0]:
            ms.append([])
            for b in ladders[1]:
                removed = a | b
                found = self._time(block, removed) if removed.any() else whole_ms
                if found is None:
                    modelled += 1
                    found = whole_ms * block.elements(self._units, removed) / block.elements(self._units, dense)
                ms[-1].append(round(found, 6))
        kept = [
            [block.kept(self._units, removed)[side] for removed in ladder] for side, ladder in enumerate(ladders)
        ]
        return {"in": kept[0], "out": kept[1], "ms": ms, "modelled": modelled}

    def _time(self, block: Block, removed: np.ndarray) -> float | None:
        """ms of one call less what calling costs; None if it does not run."""
        try:
            module, inputs = block.build(self._units, removed, self._channels_last)
            session = self._engine.compile(module, NOTHING, inputs)
            found = time_session(session, inputs)
        except (*ERRORS, StageError):
            return None
        return max(found - self._calling(), 0.0)

    def _calling(self) -> float:
        if self._call_ms is None:
            inputs = (torch.rand(1, 8),)
            self._call_ms = time_session(self._engine.compile(nn.ReLU(), NOTHING, inputs), inputs)
        return self._call_ms


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


def time_session(session: Session, inputs: Sequence[Tensor]) -> float:
    """ms of one call in steady service: the lower quartile, for a busy machine only ever adds."""
    start = time.perf_counter()
    samples: list[float] = []
    for _ in range(2):
        session(*inputs)
    while len(samples) < FEWEST_CALLS or (
        len(samples) < MOST_CALLS and (time.perf_counter() - start) * 1e3 < ENOUGH_MS
    ):
        begin = time.perf_counter_ns()
        session(*inputs)
        samples.append((time.perf_counter_ns() - begin) / 1e6)
    return float(np.quantile(samples, 0.25))


def _quick(engine: Engine) -> Engine:
    """The same kernels, called from Python: a block compiles in a fifth of the time, and calling is subtracted."""
    return replace(engine, cpp_wrapper=False) if hasattr(engine, "cpp_wrapper") else engine
