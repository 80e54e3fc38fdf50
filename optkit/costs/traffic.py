"""Traffic: when requests arrive, and with how many tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]
Tokens = NDArray[np.int64]
MINUTE = 60.0
HOUR = 3600.0
DAY = 86_400.0


@dataclass(frozen=True)
class Traffic:
    """A stream of requests.

    Attributes:
        name: what it was made from.
        arrivals: seconds from its start, in order, ``(N,)``.
        seconds: how long it lasts; the last request comes before its end.
        prompt_tokens, output_tokens: of each request to a language model, ``(N,)``; None where it is not known.
    """

    name: str
    arrivals: Times
    seconds: float
    prompt_tokens: Tokens | None = None
    output_tokens: Tokens | None = None

    def __len__(self) -> int:
        return self.arrivals.size

    @property
    def rate(self) -> float:
        """Requests a second, on average."""
        return len(self) / self.seconds

    def repeated(self, times: int) -> Traffic:
        """The same requests again and again, so many times in all."""
        starts = np.repeat(np.arange(times) * self.seconds, len(self))
        tokens = (None if t is None else np.tile(t, times) for t in (self.prompt_tokens, self.output_tokens))
        return Traffic(self.name, np.tile(self.arrivals, times) + starts, times * self.seconds, *tokens)

    def scaled(self, rate: float, seed: int) -> Traffic:
        """The same shape at another mean rate (requests a second), with as long a duration.

        Fewer requests are a random part of them. For more, requests are repeated within the minute before or after
        them: the shape over minutes stays, and bursts that last seconds become smoother.
        """
        random = np.random.default_rng(seed)
        factor = rate / self.rate
        whole = math.floor(factor)
        copies = whole + (random.random(len(self)) < factor - whole)
        chosen = np.repeat(np.arange(len(self)), copies)
        first = np.concatenate(([True], chosen[1:] != chosen[:-1]))
        moved = np.where(first, 0.0, random.uniform(-MINUTE, MINUTE, chosen.size))
        times = (self.arrivals[chosen] + moved) % self.seconds
        order = np.argsort(times, kind="stable")
        return self.taken(chosen[order], times[order], self.seconds)

    def with_tokens(self, prompt: int, output: int) -> Traffic:
        """The same requests, each with so many tokens."""
        return replace(self, prompt_tokens=np.full(len(self), prompt), output_tokens=np.full(len(self), output))

    def window(self, start: float, seconds: float) -> Traffic:
        """The requests of a part of it."""
        low, high = np.searchsorted(self.arrivals, [start, start + seconds])
        return self.taken(slice(low, high), self.arrivals[low:high] - start, seconds)

    def taken(self, places: slice | NDArray[np.int64], arrivals: Times, seconds: float) -> Traffic:
        """Some of the requests, or all in another order, that arrive at other times.

        Args:
            places: of the requests, ``(M,)``.
            arrivals: when they arrive, in order, s, ``(M,)``.
            seconds: how long it lasts.
        """
        tokens = (None if t is None else t[places] for t in (self.prompt_tokens, self.output_tokens))
        return Traffic(self.name, arrivals, seconds, *tokens)

    def counts(self, step: float) -> NDArray[np.int64]:
        """Requests in each whole step of so many seconds; at least one step."""
        steps = max(1, int(self.seconds // step + 1e-9))
        return np.histogram(self.arrivals, bins=steps, range=(0.0, steps * step))[0]


@dataclass(frozen=True)
class Description:
    """What a stream of requests looks like. Rates are requests a second.

    Attributes:
        requests: in all.
        seconds: how long it lasts.
        mean: rate.
        peak: rate of the busiest minute.
        off_peak: rate of the quietest hour; of the quietest minute where it lasts less than two hours.
        burstiness: variance over mean of the requests of a second, within minutes; 1 for Poisson arrivals.
        longest_silence_s: the longest time without a request.
        reserved_waste: the share of machines reserved for the busiest minute that stands idle.
        prompt_tokens, output_tokens: mean and 99th percentile; None where they are not known.
    """

    requests: int
    seconds: float
    mean: float
    peak: float
    off_peak: float
    burstiness: float
    longest_silence_s: float
    reserved_waste: float
    prompt_tokens: tuple[float, float] | None
    output_tokens: tuple[float, float] | None

    def lines(self) -> list[str]:
        """In words."""
        length = f"{self.seconds / DAY:.3g} days" if self.seconds >= 2 * DAY else f"{self.seconds / HOUR:.3g} hours"
        found = [
            f"{self.requests:,} requests in {length}: {self.mean:.3g} a second on average, {self.peak:.3g} in the "
            f"busiest minute, {self.off_peak:.3g} off-peak.",
            f"Burstiness within minutes is {self.burstiness:.2f} (Poisson: 1). The longest silence is "
            f"{self.longest_silence_s:.3g} s.",
            f"Machines reserved for the busiest minute would stand idle {100 * self.reserved_waste:.0f}% of the time.",
        ]
        if self.prompt_tokens and self.output_tokens:
            found.append(
                f"Prompts have {self.prompt_tokens[0]:.0f} tokens (p99 {self.prompt_tokens[1]:.0f}), answers "
                f"{self.output_tokens[0]:.0f} (p99 {self.output_tokens[1]:.0f})."
            )
        return found


def describe(traffic: Traffic) -> Description:
    """Peak, off-peak, burstiness, and what machines for the peak would waste."""
    by_minute = traffic.counts(MINUTE) / min(MINUTE, traffic.seconds)
    long = HOUR if traffic.seconds >= 2 * HOUR else MINUTE
    off_peak = float((traffic.counts(long) / min(long, traffic.seconds)).min())
    peak = float(by_minute.max())
    ends = np.concatenate(([0.0], traffic.arrivals, [traffic.seconds]))
    return Description(
        requests=len(traffic),
        seconds=traffic.seconds,
        mean=traffic.rate,
        peak=peak,
        off_peak=off_peak,
        burstiness=_burstiness(traffic),
        longest_silence_s=float(np.diff(ends).max()),
        reserved_waste=max(0.0, 1 - traffic.rate / peak),
        prompt_tokens=_tokens(traffic.prompt_tokens),
        output_tokens=_tokens(traffic.output_tokens),
    )


def _burstiness(traffic: Traffic) -> float:
    """Index of dispersion of counts in a second, pooled over minutes, so that slow changes do not count."""
    by_second = traffic.counts(1.0)
    minutes = by_second[: by_second.size // 60 * 60].reshape(-1, 60) if by_second.size >= 60 else by_second[None]
    mean = minutes.mean(1).sum()
    return float(minutes.var(1, ddof=1).sum() / mean) if mean and minutes.shape[1] > 1 else 1.0


def _tokens(tokens: Tokens | None) -> tuple[float, float] | None:
    return None if tokens is None else (float(tokens.mean()), float(np.quantile(tokens, 0.99)))
