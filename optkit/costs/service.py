"""Service times: how long a replica is busy with a batch, by the batch's size and, for language models, by its tokens.

Times come from the timed calls of a ledger. A batch between two measured sizes takes what lies linearly between their
quantiles; on an engine that fills batches up it takes the next larger size's time. Nothing is extrapolated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from optkit.core.errors import UserError
from optkit.costs.traffic import Traffic

POINTS = 4096  # quantiles that stand for a distribution
LEVELS = (np.arange(POINTS) + 0.5) / POINTS
# seconds of a batch, of the number of its first request and its size
TimeOf = Callable[[int, int], float]


class Service(Protocol):
    """Service times of one variant on one engine."""

    @property
    def sizes(self) -> Sequence[int]:
        """Measured batch sizes, smallest first."""

    def bind(self, traffic: Traffic, max_batch: int, seed: int) -> TimeOf:
        """The times of batches of this traffic's requests, drawn from a seed."""

    def mean(self, traffic: Traffic, size: int) -> float:
        """Mean seconds of a batch of this traffic's requests, each as long as a request by itself is."""

    def p99(self, traffic: Traffic, size: int) -> float:
        """99th percentile of a batch's seconds, as `mean`."""

    def scaled(self, end: int) -> Service:
        """The times at the lower (0) or upper (1) end of their medians' intervals."""

    def times(self, factor: float) -> Service:
        """The times on a machine that takes so many times as long."""


@dataclass(frozen=True)
class BatchTimes:
    """Service times by batch size alone.

    Attributes:
        sizes: measured batch sizes, smallest first; the first is 1.
        quantiles: seconds at `POINTS` levels, ascending, ``(sizes, POINTS)``.
        ends: lower and upper end of the 95% interval of each median, over the median, ``(sizes, 2)``.
        filled: whether smaller batches are filled up to the next measured size.
    """

    sizes: list[int]
    quantiles: NDArray[np.float64]
    ends: NDArray[np.float64]
    filled: bool = False

    @classmethod
    def of_samples(cls, samples: dict[int, NDArray[np.float64]], filled: bool = False) -> BatchTimes:
        """Of measured seconds by batch size, whose medians are taken as exact."""
        sizes = sorted(samples)
        return cls(sizes, np.array([np.quantile(samples[n], LEVELS) for n in sizes]), np.ones((len(sizes), 2)), filled)

    def of_size(self, size: int) -> NDArray[np.float64]:
        """Quantiles of a batch of any size up to the largest measured, ``(POINTS,)``."""
        place = int(np.searchsorted(self.sizes, size))
        if self.filled or self.sizes[place] == size:
            return self.quantiles[place]
        below, above = self.sizes[place - 1], self.sizes[place]
        share = (size - below) / (above - below)
        return (1 - share) * self.quantiles[place - 1] + share * self.quantiles[place]

    def bind(self, traffic: Traffic, max_batch: int, seed: int) -> TimeOf:
        draws = np.random.default_rng(seed).integers(POINTS, size=len(traffic)).tolist()
        tables = [[], *(self.of_size(size).tolist() for size in range(1, max_batch + 1))]
        if max_batch == 1:
            alone = self.of_size(1)[draws].tolist()
            return lambda first, size: alone[first]
        return lambda first, size: tables[size][draws[first]]

    def mean(self, traffic: Traffic, size: int) -> float:
        return float(self.of_size(size).mean())

    def p99(self, traffic: Traffic, size: int) -> float:
        return float(np.quantile(self.of_size(size), 0.99))

    def scaled(self, end: int) -> BatchTimes:
        return BatchTimes(self.sizes, self.quantiles * self.ends[:, end : end + 1], self.ends, self.filled)

    def times(self, factor: float) -> BatchTimes:
        return BatchTimes(self.sizes, self.quantiles * factor, self.ends, self.filled)


@dataclass(frozen=True)
class TokenTimes:
    """Service times of a language model that answers batch by batch: reading the prompts, then token by token.

    A batch is padded to its longest prompt and generates until its longest answer ends. Prompts shorter than the
    shortest measured count as that.

    Attributes:
        sizes: measured batch sizes, smallest first; the first is 1.
        lengths: measured prompt lengths, tokens, shortest first.
        prefill: median seconds of reading prompts up to the first token, ``(sizes, lengths)``.
        decode: median seconds of each further token, behind so many, ``(sizes, lengths)``.
        spread: quantiles of a prefill over its median, ``(POINTS,)``.
        ends: lower and upper end of the intervals of all medians, over the medians: the widest.
    """

    sizes: list[int]
    lengths: list[int]
    prefill: NDArray[np.float64]
    decode: NDArray[np.float64]
    spread: NDArray[np.float64]
    ends: tuple[float, float] = (1.0, 1.0)

    def bind(self, traffic: Traffic, max_batch: int, seed: int) -> TimeOf:
        prompts, outputs = self._tokens(traffic)
        reading, further = self._tables(max_batch)
        noise = self.spread[np.random.default_rng(seed).integers(self.spread.size, size=len(traffic))].tolist()
        prompt, output = prompts.tolist(), outputs.tolist()

        def time(first: int, size: int) -> float:
            if size == 1:
                longest, most = prompt[first], output[first]
            else:
                longest, most = max(prompt[first : first + size]), max(output[first : first + size])
            return reading[size][longest] * noise[first] + (most - 1) * further[size][longest + most // 2]

        return time

    def mean(self, traffic: Traffic, size: int) -> float:
        return float(self._alone(traffic, size).mean())

    def p99(self, traffic: Traffic, size: int) -> float:
        return float(np.quantile(self._alone(traffic, size), 0.99))

    def scaled(self, end: int) -> TokenTimes:
        return self.times(self.ends[end])

    def times(self, factor: float) -> TokenTimes:
        return TokenTimes(self.sizes, self.lengths, factor * self.prefill, factor * self.decode, self.spread, self.ends)

    def longest(self, traffic: Traffic) -> int:
        """Tokens behind which the times must be known: of the longest prompt and half of its answer.

        Where requests are batched, the longest answer may be that of another request.
        """
        prompts, outputs = self._tokens(traffic)
        if len(self.sizes) > 1:
            return int(prompts.max() + outputs.max() // 2)
        return int((prompts + outputs // 2).max())

    def _alone(self, traffic: Traffic, size: int) -> NDArray[np.float64]:
        prompts, outputs = self._tokens(traffic)
        reading, further = (np.array(table[size]) for table in self._tables(size))
        found: NDArray[np.float64] = reading[prompts] + (outputs - 1) * further[prompts + outputs // 2]
        return found

    def _tables(self, max_batch: int) -> tuple[list[list[float]], list[list[float]]]:
        """Seconds of prefill and of a token, by batch size and by tokens."""
        every = np.arange(self.lengths[-1] + 1)

        def table(grid: NDArray[np.float64]) -> list[list[float]]:
            found: list[list[float]] = [[]]
            for size in range(1, max_batch + 1):
                row = [np.interp(size, self.sizes, column) for column in grid.T]
                found.append(np.interp(every, self.lengths, row).tolist())
            return found

        return table(self.prefill), table(self.decode)

    @staticmethod
    def _tokens(traffic: Traffic) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if traffic.prompt_tokens is None or traffic.output_tokens is None:
            fix = "give prompt_tokens and output_tokens, such as poisson:rate=1/s,prompt_tokens=512,output_tokens=64"
            raise UserError("a language model needs the tokens of each request", key="traffic", fix=fix)
        return traffic.prompt_tokens, np.maximum(traffic.output_tokens, 1)
