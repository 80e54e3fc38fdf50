"""When timing stops: on series whose noise is known, and on sessions that take a known time."""

import numpy as np
import pytest
import torch

from optkit.core.statistics import ratio_of_medians
from optkit.measure import latency
from optkit.measure.latency import CALLS, ENOUGH_ROUNDS, MAX_ROUNDS, MIN_ROUNDS, interleaved
from optkit.measure.precision import CHECKED_AT, has_intervals, precise_enough

INPUTS = (torch.zeros(1),)


def _sides(noise, rounds=60, names="ab"):
    random = np.random.default_rng(1)
    return {name: np.exp(noise * random.standard_normal((rounds, CALLS))) for name in names}


def test_a_ratio_is_precise_where_its_interval_and_that_of_its_first_half_are_narrow():
    sides, pairs = _sides(0.03), [("a", "b")]
    halves = [ratio_of_medians(sides["a"][:n], sides["b"][:n]) for n in (60, 30)]
    whole, half = ((r.high - r.low) / 2 / r.value for r in halves)
    needed = max(whole, half / 2**0.5)
    assert precise_enough(sides, pairs, 1.01 * needed)
    assert not precise_enough(sides, pairs, 0.99 * needed)
    # by luck narrow in the end, wide in the first half
    sides["a"][:30] *= np.exp(0.5 * np.random.default_rng(2).standard_normal((30, 1)))
    sides["a"][30:] = sides["b"][30:]
    assert not precise_enough(sides, pairs, 0.02)


def test_every_wanted_ratio_must_be_precise():
    sides = _sides(0.01) | _sides(0.5, names="c")
    assert precise_enough(sides, [("a", "b")], 0.02)
    assert not precise_enough(sides, [("a", "b"), ("c", "b")], 0.02)
    assert not precise_enough(sides, [], 0.02)
    del sides["c"]
    assert precise_enough(sides, [], 0.02)


def test_rounds_that_are_too_few_have_no_intervals():
    assert has_intervals(_sides(0.1, rounds=20), [("a", "b")])
    assert not has_intervals(_sides(0.1, rounds=5), [("a", "b")])


@pytest.fixture
def times(monkeypatch):
    """``times(noise)`` makes calls take a ms, give or take this, on a clock that each round takes a tenth of a second."""

    def install(noise):
        random, clock = np.random.default_rng(3), [0.0]

        def calls(request, number):
            clock[0] += 0.05
            return np.exp(noise * random.standard_normal(number))

        monkeypatch.setattr(latency, "_time_calls", calls)
        monkeypatch.setattr(latency.time, "perf_counter", lambda: clock[0])

    return install


def _timed(seconds, precision, pairs=(("a", "b"),)):
    found = interleaved(dict.fromkeys("ab", torch.neg), INPUTS, seconds, 0, precision=precision, pairs=pairs)
    assert len({len(series.samples) for series in found.values()}) == 1
    return len(found["a"].samples), found["a"].stopped


@pytest.mark.parametrize(
    ("noise", "seconds", "precision", "expected"),
    [
        (0.001, 1e3, 0.02, (CHECKED_AT[0], "precise")),
        (0.001, 1e3, None, (MAX_ROUNDS, "rounds")),
        (0.001, 3.95, 0.02, (40, "time")),
        (0.001, 0.01, 0.02, (MIN_ROUNDS, "time")),
        (0.9, 1e3, 0.02, (MAX_ROUNDS, "rounds")),
    ],
)
def test_rounds_are_added_until_the_ratio_is_precise_or_the_time_is_up(times, noise, seconds, precision, expected):
    times(noise)
    assert _timed(seconds, precision) == expected


def test_noisier_sessions_take_more_rounds(times):
    times(0.09)
    rounds, stopped = _timed(1e3, 0.02)
    assert (stopped, rounds in CHECKED_AT[1:]) == ("precise", True)


def test_rounds_without_an_interval_are_followed_by_a_few_more(times, monkeypatch):
    times(0.01)
    monkeypatch.setattr(latency, "has_intervals", lambda samples, pairs: len(samples["a"]) >= 23)
    assert _timed(0.01, 0.02) == (23, "time")
    monkeypatch.setattr(latency, "has_intervals", lambda samples, pairs: False)
    assert _timed(0.01, 0.02) == (ENOUGH_ROUNDS, "time")


def test_the_load_is_watched_for_half_a_second_at_least(times, monkeypatch):
    times(0.001)
    monkeypatch.setattr(latency, "MOMENT_S", 9.0)
    assert _timed(1e3, 0.02) == (CHECKED_AT[1], "precise")
