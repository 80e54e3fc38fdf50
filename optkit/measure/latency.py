"""Latency: times several sessions in turn, so that a drift of the machine affects all of them."""

from __future__ import annotations

import gc
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from optkit.core.allocator import keep_freed_memory
from optkit.core.engine import Session
from optkit.core.progress import track
from optkit.core.records import Measurement
from optkit.core.seeds import derive_seed
from optkit.core.statistics import median
from optkit.core.turns import timing_turn
from optkit.core.workload import FORWARD, Request, Workload
from optkit.measure.config import Measure
from optkit.measure.disturbance import MOMENT_S, LoadWatch, OtherLoad
from optkit.measure.precision import CHECKED_AT, Pair, has_intervals, precise_enough

log = logging.getLogger(__name__)
CALLS = 5
LONG_MS = 50.0
MIN_ROUNDS, MAX_ROUNDS = 20, 400
ENOUGH_ROUNDS = 30  # for an interval, nearly always
STEADY = 0.05


@dataclass(frozen=True)
class Series:
    """Latencies of one session, ms, ``(rounds, calls)``: calls of a round follow each other, rounds are interleaved.

    A round has 5 calls, or one where a call takes longer than 50 ms.

    Attributes:
        samples: the latencies.
        load: what other work on the machine took meanwhile.
        tries: how often the series was timed; disturbed ones are timed again, and the least disturbed is kept.
        stopped: why timing ended: ``precise``, ``time`` is up, or ``rounds``, of which there are at most 400.
    """

    samples: NDArray[np.float64]
    load: OtherLoad = OtherLoad(None, None)  # noqa: RUF009
    tries: int = 1
    stopped: str = "time"


def measure_latency(
    sessions: Mapping[str, Session],
    inputs: tuple[Tensor, ...],
    config: Measure,
    seed: int,
    pairs: Sequence[Pair],
    conditions: Mapping[str, dict[str, Any]],
    workload: Workload = FORWARD,
) -> dict[str, Measurement]:
    """The median latency of each session with its interval, all timed in the same rounds; raw keeps the rounds.

    Args:
        sessions, inputs, seed, pairs: as for `interleaved`.
        config: how long, how precisely, and how often again.
        conditions: of each session, besides what is known of the timing.
        workload: what a request is.
    """
    series = interleaved(sessions, inputs, config.seconds, seed, config.retries, config.precision, pairs, workload)
    stated = {} if config.p99_limit_ms is None else {"p99_limit_ms": config.p99_limit_ms}
    counted = {"workload": workload.name, "count": workload.count(inputs), "unit": workload.unit}
    together = {"interleaved": uuid.uuid4().hex[:12]} | counted | stated
    return {name: _measurement(series[name], conditions[name] | together) for name in sessions}


def _measurement(series: Series, conditions: dict[str, Any]) -> Measurement:
    state = {
        "other_load": series.load.mean,
        "other_load_peak": series.load.peak,
        "disturbed": series.load.disturbs,
        "tries": series.tries,
        "rounds": len(series.samples),
        "stopped": series.stopped,
    }
    interval = median(series.samples)
    raw: Sequence[Sequence[float]] = np.round(series.samples, 6).tolist()
    return Measurement("latency", interval.value, "ms", interval.ci, series.samples.size, conditions | state, raw)


def interleaved(
    sessions: Mapping[str, Session],
    inputs: tuple[Tensor, ...],
    seconds: float,
    seed: int,
    retries: int = 0,
    precision: float | None = None,
    pairs: Sequence[Pair] = (),
    workload: Workload = FORWARD,
) -> dict[str, Series]:
    """Times sessions in rounds. In each round every session, in random order, is called once untimed and then timed.

    The untimed call brings the session's weights back into the caches, as they would be in steady service. Where a call
    takes longer than 50 ms, caches matter little: a round is one call, and without an untimed one where calls leave
    nothing behind. The process
    keeps freed memory from here on (`keep_freed_memory`), so that a latency does not depend on what ran before it.
    Other processes of optkit on this host do not time meanwhile (`timing_turn`).

    Args:
        sessions: by name; all take ``inputs``.
        seconds: time to spend on timing, warm-up apart. At least 20 rounds are made whatever they take, and up to 30
            where 20 are too few for an interval.
        seed: of the order in which sessions take their turns.
        retries: how often to time again while other work disturbs the machine.
        precision: timing stops sooner where every wanted ratio is known to this precision, half the interval's width
            over its value (`precise_enough`); None spends all the time.
        pairs: the sessions whose ratios are wanted, numerator first; without any, each latency itself is.
        workload: what a call is.
    """
    requests = {name: workload.request(session, inputs) for name, session in sessions.items()}
    with timing_turn(f"timing {', '.join(sessions)}"):
        keep_freed_memory()
        calls = {name: _warm_up(request) for name, request in requests.items()}
        found: list[_Try] = []
        while len(found) <= retries and all(one.load.disturbs for one in found):
            found.append(_timed(requests, calls, seconds, derive_seed(seed, "turns", len(found)), precision, pairs))
            if found[-1].load.disturbs:
                again = "; timed again" if len(found) <= retries else ""
                log.info("latency: other work keeps %.1f cores busy%s", found[-1].load.peak, again)
    best = min(found, key=lambda one: (one.load.disturbs, one.load.mean or 0.0))
    return {name: Series(times, best.load, len(found), best.stopped) for name, times in best.samples.items()}


@dataclass(frozen=True)
class _Try:
    samples: dict[str, NDArray[np.float64]]
    load: OtherLoad
    stopped: str


def _timed(
    requests: Mapping[str, Request],
    calls: Mapping[str, int],
    seconds: float,
    seed: int,
    precision: float | None,
    pairs: Sequence[Pair],
) -> _Try:
    """Latencies by session, ``(rounds, calls)``."""
    names = list(requests)
    samples = {name: np.empty((MAX_ROUNDS, calls[name])) for name in names}
    random = np.random.default_rng(seed)
    collecting = gc.isenabled()
    gc.disable()
    try:
        watch, begin = LoadWatch(), time.perf_counter()
        for done in track(range(1, MAX_ROUNDS + 1), "latency, rounds at most", MAX_ROUNDS):
            for place in random.permutation(len(names)):
                name = names[place]
                samples[name][done - 1] = _time_calls(requests[name], calls[name])
                watch.look()
            so_far = {name: times[:done] for name, times in samples.items()}
            stopped = _stopped(so_far, done, time.perf_counter() - begin, seconds, precision, pairs)
            if stopped:
                break
        return _Try(so_far, watch.load(), stopped or "rounds")
    finally:
        if collecting:
            gc.enable()


def _stopped(
    samples: dict[str, NDArray[np.float64]],
    rounds: int,
    took: float,
    seconds: float,
    precision: float | None,
    pairs: Sequence[Pair],
) -> str | None:
    """Why timing ends after so many rounds; None if it goes on."""
    # of less than a moment nobody can say what else ran
    checked = rounds in CHECKED_AT and took >= min(MOMENT_S, seconds)
    if precision is not None and checked and precise_enough(samples, pairs, precision):
        return "precise"
    if took < seconds or rounds < MIN_ROUNDS:
        return None
    return "time" if rounds >= ENOUGH_ROUNDS or has_intervals(samples, pairs) else None


def _warm_up(request: Request) -> int:
    """Makes rounds until one is no longer faster than that before it, by more than 5%: at least 2, at most 20.

    Returns:
        How many calls of this request are a round: one where even the second takes longer than 50 ms.
    """
    calls = 1 if all(_time_calls(request, 1)[0] > LONG_MS for _ in range(2)) else CALLS
    last = np.inf
    for _ in range(20):
        now = float(np.median(_time_calls(request, calls)))
        if now >= (1 - STEADY) * last:
            break
        last = now
    return calls


def _time_calls(request: Request, calls: int) -> NDArray[np.float64]:
    """A round of one session, ms, ``(calls,)``. An untimed call comes first, but for one call that leaves nothing."""
    if request.reset is not None:
        request.reset()
    if calls > 1 or request.reset is not None:
        request.call()
    times = np.empty(calls)
    for call in range(calls):
        start = time.perf_counter_ns()
        request.call()
        times[call] = (time.perf_counter_ns() - start) / 1e6
    return times
