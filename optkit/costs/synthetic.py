"""Made-up traffic: Poisson, bursty, daily and weekly. All of it is drawn from a seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from optkit.core.errors import UserError
from optkit.costs.traffic import DAY, HOUR, MINUTE, Times, Traffic

BUSIEST_HOUR = 14  # of a day
WEEKEND = (5, 6)  # days of a week that begins on a Monday


def poisson(rate: float, seconds: float, seed: int) -> Traffic:
    """Arrivals at one rate (requests a second), each independent of the others."""
    return _inhomogeneous("poisson", np.array([rate]), seconds, seconds, seed)


def bursty(rate: float, seconds: float, seed: int, burst: float, share: float, length: float) -> Traffic:
    """A Markov-modulated Poisson process of two states, calm and burst (Fischer and Meier-Hellstern, 1993).

    Args:
        rate: mean, requests a second.
        seconds: how long it lasts.
        seed: of the draws.
        burst: rate in bursts over the mean rate.
        share: of the time that bursts take.
        length: mean seconds of a burst; its distribution is exponential.

    Raises:
        UserError: bursts that hold more requests than there are.
    """
    if not 0 < share < 1 or not 1 < burst <= 1 / share:
        message = f"bursts of {burst:g} times the rate in {share:g} of the time"
        raise UserError(message, key="traffic", value=burst, fix="0 < share < 1, and 1 < burst <= 1 / share")
    random = np.random.default_rng(seed)
    calm = length * (1 - share) / share
    pairs = max(1, int(2 * seconds / (length + calm)) + 20)
    in_burst_first = random.random() < share
    means = np.tile([length, calm] if in_burst_first else [calm, length], pairs)
    ends = np.cumsum(random.exponential(means))
    while ends[-1] < seconds:
        ends = np.concatenate((ends, ends[-1] + np.cumsum(random.exponential(means))))
    rates = np.where((np.arange(ends.size) % 2 == 0) == in_burst_first, burst, (1 - share * burst) / (1 - share))
    starts = np.concatenate(([0.0], ends[:-1]))
    lasts = np.clip(ends, 0, seconds) - np.clip(starts, 0, seconds)
    counts = random.poisson(rate * rates * lasts)
    return Traffic("bursty", _spread(counts, starts, lasts, random), seconds)


def daily(rate: float, seconds: float, seed: int, peak: float) -> Traffic:
    """Arrivals that follow the hours of the day: Poisson, at a rate that is a von Mises curve around 14:00.

    Args:
        rate: mean, requests a second.
        seconds: how long it lasts, from midnight on.
        seed: of the draws.
        peak: the highest rate over the mean rate of a day, at least 1.
    """
    return _inhomogeneous("daily", rate * _day(peak), seconds, MINUTE, seed)


def weekly(rate: float, seconds: float, seed: int, peak: float, weekend: float) -> Traffic:
    """`daily`, with other rates on Saturdays and Sundays.

    Args:
        rate: mean of a week, requests a second.
        seconds: how long it lasts, from Monday's midnight on.
        seed: of the draws.
        peak: the highest rate over the mean rate of a day, at least 1.
        weekend: a weekend day's requests over those of a working day.
    """
    days = np.where(np.isin(np.arange(7), WEEKEND), weekend, 1.0)
    return _inhomogeneous("weekly", rate * np.outer(days / days.mean(), _day(peak)).ravel(), seconds, MINUTE, seed)


def spread(counts: NDArray[np.int64], starts: Times, seconds: float, seed: int) -> Times:
    """Arrivals, in order, of which each interval of so many seconds holds as many as were counted, at random places."""
    return _spread(counts, starts, np.full(starts.size, seconds), np.random.default_rng(seed))


def _day(peak: float) -> NDArray[np.float64]:
    """Rates of the minutes of a day; their mean is 1, the highest is ``peak``."""
    from scipy.optimize import brentq

    if not 1 <= peak <= 20:
        raise UserError(f"a peak of {peak:g} times the mean", key="traffic", value=peak, fix="1 to 20")
    hours = (np.arange(DAY / MINUTE) + 0.5) * MINUTE / HOUR
    wave = np.cos((hours - BUSIEST_HOUR) * (2 * np.pi / 24))

    def shape(concentration: float) -> NDArray[np.float64]:
        curve = np.exp(concentration * (wave - 1))
        return curve / curve.mean()

    return shape(brentq(lambda k: shape(k).max() - peak, 0.0, 5000.0) if peak > 1 else 0.0)


def _inhomogeneous(name: str, rates: NDArray[np.float64], seconds: float, step: float, seed: int) -> Traffic:
    """Poisson arrivals at rates that change from step to step; the steps begin anew behind the last."""
    random = np.random.default_rng(seed)
    starts = np.arange(0.0, seconds, step)
    lasts = np.minimum(starts + step, seconds) - starts
    counts = random.poisson(np.resize(rates, starts.size) * lasts)
    return Traffic(name, _spread(counts, starts, lasts, random), seconds)


def _spread(counts: NDArray[np.int64], starts: Times, lasts: Times, random: np.random.Generator) -> Times:
    within = random.random(int(counts.sum()))
    return np.sort(np.repeat(starts, counts) + within * np.repeat(lasts, counts))
