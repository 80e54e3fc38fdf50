"""Parts of a model timed alone: what they take in steady service, and what that depends on."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optkit.core.compat.versions import version_of
from optkit.core.engine import Engine, Session
from optkit.core.environment import cpu
from optkit.core.source_digest import code_of, code_of_module

PASSES = 3
FEWEST_CALLS, MOST_CALLS, ENOUGH_MS = 5, 100, 20.0  # of a pass


@dataclass
class Timed:
    """A session, its inputs, and the least ms it took so far."""

    session: Session
    inputs: tuple[Tensor, ...]
    ms: float = math.inf


def machine_key(engine: Engine, threads: int) -> dict[str, Any]:
    """What decides how long a model takes besides the model: the machine, the engine, and their versions; JSON."""
    return {
        "cpu": cpu(),
        "gpu": torch.cuda.get_device_name() if engine.device == "cuda" and torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "engine": engine.name,
        "packages": {name: version_of(name) for name in engine.packages},
        "options": asdict(engine),  # type: ignore[call-overload]
        "code": [code_of(type(engine)), code_of_module(__name__)],
        "threads": threads,
    }


def time_session(session: Session, inputs: Sequence[Tensor]) -> float:
    """ms of one call in steady service: the lower quartile, for a busy machine only ever adds."""
    start = time.perf_counter()
    samples: list[float] = []
    session(*inputs)
    while len(samples) < FEWEST_CALLS or (
        len(samples) < MOST_CALLS and (time.perf_counter() - start) * 1e3 < ENOUGH_MS
    ):
        begin = time.perf_counter_ns()
        session(*inputs)
        samples.append((time.perf_counter_ns() - begin) / 1e6)
    return float(np.quantile(samples, 0.25))


def corrected(goal: float, seen: Sequence[tuple[float, float]]) -> float:
    """The share to ask of a table so that ``goal`` is really left: interpolation between (table, real) shares.

    The model that nothing was done to stands for (1, 1). Between two measured shares that hold the goal between them
    the line through these two is taken, beyond all of them the line through the outermost two.
    """
    points = sorted({1.0: 1.0, **{real: table for table, real in seen}}.items())
    if len(points) < 2:
        return goal
    above = next((k for k, (real, _) in enumerate(points) if real >= goal), len(points) - 1)
    (x0, y0), (x1, y1) = points[max(above - 1, 0)], points[max(above, 1)]
    return min(max(y0 + (goal - x0) * (y1 - y0) / (x1 - x0), 0.0), 1.0)
