"""Latency: several sessions timed in turn, so that a machine that drifts moves them all."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from optkit.core.engine import Session
from optkit.core.progress import track

CALLS = 5
MIN_ROUNDS, MAX_ROUNDS = 20, 400
STEADY = 0.05


@dataclass(frozen=True)
class Series:
    """Latencies of one session, ms, ``(rounds, calls)``: calls of a round follow each other, rounds are interleaved."""

    samples: NDArray[np.float64]


def interleaved(
    sessions: Mapping[str, Session], inputs: tuple[Tensor, ...], seconds: float, seed: int
) -> dict[str, Series]:
    """Times sessions in rounds. In each round every session, in random order, is called once untimed and then timed.

    The untimed call brings the session's weights back into the caches, as they would be in steady service.

    Args:
        sessions: by name; all take ``inputs``.
        seconds: time to spend on timing, warm-up apart; at least 20 rounds are made whatever it takes.
        seed: of the order in which sessions take their turns.
    """
    names = list(sessions)
    for name in names:
        _warm_up(sessions[name], inputs)
    rounds = _rounds(sessions, inputs, seconds)
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
    return {name: Series(times) for name, times in samples.items()}


def _warm_up(session: Session, inputs: tuple[Tensor, ...]) -> None:
    """Calls until two blocks of calls take the same time within 5%, or for 20 blocks."""
    last = np.inf
    for _ in range(20):
        now = float(np.median(_time_calls(session, inputs, CALLS)))
        if abs(now - last) <= STEADY * last:
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
