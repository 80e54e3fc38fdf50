"""Latency: several sessions timed in turn, so that a machine that drifts moves them all."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from optkit.core.allocator import keep_freed_memory
from optkit.core.engine import Session
from optkit.core.progress import track
from optkit.measure.disturbance import Mark, disturbed

log = logging.getLogger(__name__)
CALLS = 5
MIN_ROUNDS, MAX_ROUNDS = 20, 400
STEADY = 0.05


@dataclass(frozen=True)
class Series:
    """Latencies of one session, ms, ``(rounds, calls)``: calls of a round follow each other, rounds are interleaved.

    Attributes:
        samples: the latencies.
        others: cores that other work on the machine kept busy meanwhile; None if that is not known.
        tries: how often the series was timed; disturbed ones are timed again, and the least disturbed is kept.
    """

    samples: NDArray[np.float64]
    others: float | None = None
    tries: int = 1


def interleaved(
    sessions: Mapping[str, Session], inputs: tuple[Tensor, ...], seconds: float, seed: int, retries: int = 0
) -> dict[str, Series]:
    """Times sessions in rounds. In each round every session, in random order, is called once untimed and then timed.

    The untimed call brings the session's weights back into the caches, as they would be in steady service. The process
    keeps freed memory from here on (`keep_freed_memory`), so that a latency does not depend on what ran before it.

    Args:
        sessions: by name; all take ``inputs``.
        seconds: time to spend on timing, warm-up apart; at least 20 rounds are made whatever it takes.
        seed: of the order in which sessions take their turns.
        retries: how often to time again while other work disturbs the machine.
    """
    keep_freed_memory()
    for session in sessions.values():
        _warm_up(session, inputs)
    rounds = _rounds(sessions, inputs, seconds)
    best: tuple[float, dict[str, NDArray[np.float64]], float | None] | None = None
    tries = 0
    while tries <= retries:
        before = Mark.now()
        samples = _timed(sessions, inputs, rounds, seed + tries)
        others = Mark.now().others_since(before)
        tries += 1
        if best is None or (others or 0.0) < best[0]:
            best = (others or 0.0, samples, others)
        if not disturbed(others):
            break
        log.info("latency: other work keeps %.1f cores busy%s", others, "; timed again" if tries <= retries else "")
    assert best is not None
    return {name: Series(times, best[2], tries) for name, times in best[1].items()}


def _timed(
    sessions: Mapping[str, Session], inputs: tuple[Tensor, ...], rounds: int, seed: int
) -> dict[str, NDArray[np.float64]]:
    """Latencies by session, ``(rounds, calls)``."""
    names = list(sessions)
    samples = {name: np.empty((rounds, CALLS)) for name in names}
    random = np.random.default_rng(seed)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for round_ in track(range(rounds), "latency", rounds):
            for place in random.permutation(len(names)):
                samples[names[place]][round_] = _time_calls(sessions[names[place]], inputs, CALLS)
    finally:
        if collecting:
            gc.enable()
    return samples


def _warm_up(session: Session, inputs: tuple[Tensor, ...]) -> None:
    """Blocks of calls until one is no longer faster than that before it, by more than 5%; at least 2, at most 20."""
    last = np.inf
    for _ in range(20):
        now = float(np.median(_time_calls(session, inputs, CALLS)))
        if now >= (1 - STEADY) * last:
            return
        last = now


def _rounds(sessions: Mapping[str, Session], inputs: tuple[Tensor, ...], seconds: float) -> int:
    a_round = sum((CALLS + 1) * float(np.median(_time_calls(s, inputs, 3))) / 1e3 for s in sessions.values())
    return int(np.clip(seconds / a_round, MIN_ROUNDS, MAX_ROUNDS))


def _time_calls(session: Session, inputs: tuple[Tensor, ...], calls: int) -> NDArray[np.float64]:
    session(*inputs)
    times = np.empty(calls)
    for call in range(calls):
        start = time.perf_counter_ns()
        session(*inputs)
        times[call] = (time.perf_counter_ns() - start) / 1e6
    return times
