"""Observers: what calibration remembers of an activation, and the range that each scheme reads off it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torchao.quantization.pt2e import PerChannelMinMaxObserver
from torchao.quantization.pt2e.observer import ObserverBase

from optkit.core.errors import UserError
from optkit.core.processes import current

BINS = 2048
DECAY = 0.99
PERCENTILE = 0.9999
EPS = 1e-8  # of probabilities
# of scales: the least fp32 number whose reciprocal is finite and which no engine takes for 0
SMALLEST = torch.finfo(torch.float32).tiny


@dataclass
class Statistics:
    """One activation over all calibration batches, in a few kilobytes.

    Attributes:
        low, high: smallest and largest value.
        batch: the number of the one that is read now.
        ranges: smallest and largest value of each call, with the number of its batch.
        counts: histogram of ``BINS`` equal bins from ``-reach`` to ``reach``; None where no scheme asks for it.
        reach: always a power of two times the first batch's, so that growing merges whole bins.
    """

    low: float = float("inf")
    high: float = float("-inf")
    batch: int = 0
    ranges: list[tuple[int, float, float]] = field(default_factory=list)
    counts: Tensor | None = None
    reach: float = 0.0

    def add(self, x: Tensor, histogram: bool) -> None:
        """Takes in the values of one call."""
        low, high = (float(v) for v in torch.aminmax(x))
        if not (math.isfinite(low) and math.isfinite(high)):
            message = f"an activation of batch {self.batch + 1} is not finite"
            raise UserError(message, key="batches", fix="look for NaN and infinities in this batch")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.ranges.append((self.batch, low, high))
        if histogram:
            self._count(x, max(-low, high, SMALLEST))

    def _count(self, x: Tensor, reach: float) -> None:
        if self.counts is None:
            self.counts, self.reach = torch.zeros(BINS, dtype=torch.float64), reach
        self.widen(reach)
        self.counts += torch.histc(x.float(), BINS, -self.reach, self.reach).double().cpu()

    def widen(self, reach: float) -> None:
        """Merges bins until they reach so far."""
        while self.counts is not None and self.reach < reach:
            merged = self.counts.view(-1, 2).sum(1)
            self.counts = torch.nn.functional.pad(merged, (BINS // 4, BINS // 4))
            self.reach *= 2

    def histogram(self) -> tuple[Tensor, Tensor]:
        """Centers and counts of the bins ``(BINS,)``."""
        assert self.counts is not None
        width = 2 * self.reach / BINS
        return (torch.arange(BINS, dtype=torch.float64) + 0.5) * width - self.reach, self.counts


def begin_alike(found: Sequence[Statistics]) -> None:
    """Gives all processes the bins of the first, once each has seen the first batch; only the first counts that."""
    processes = current()
    if not processes.several or not found:
        return
    reaches = torch.tensor([one.reach for one in found], dtype=torch.float64)
    processes.copy_first([reaches])
    if processes.is_first:
        return
    for one, reach in zip(found, reaches.tolist(), strict=True):
        one.reach = reach
        one.ranges.clear()
        if one.counts is not None:
            one.counts.zero_()


def put_together(found: Sequence[Statistics]) -> None:
    """Makes statistics those of all processes, as one process would have them after all batches."""
    processes = current()
    if not processes.several:
        return
    of_all = processes.gather([[one.low, one.high, one.reach, one.ranges] for one in found])
    for one, seen in zip(found, zip(*of_all, strict=True), strict=True):
        lows, highs, reaches, ranges = zip(*seen, strict=True)
        one.low, one.high = min(lows), max(highs)
        one.ranges = sorted(((n, low, high) for calls in ranges for n, low, high in calls), key=lambda call: call[0])
        one.widen(max(reaches))
        if one.counts is not None:
            processes.sum(one.counts)


Range = tuple[float, float]


class Grid(NamedTuple):
    """What an activation is rounded to.

    Attributes:
        symmetric: zero point in the middle for activations of both signs; one that is never negative has it at 0.
        quant_min, quant_max: the integers.
    """

    symmetric: bool = False
    quant_min: int = 0
    quant_max: int = 255

    def affine(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The scale (fp32) and zero point of a range, which is widened to take in 0; ends of any one shape."""
        low, high = low.double().clamp(max=0), high.double().clamp(min=0)
        span = self.quant_max - self.quant_min
        scale = scale_of(high - low, span)
        zero_point = (self.quant_min + (-low / scale).round()).clamp(self.quant_min, self.quant_max)
        if self.symmetric:
            half, signed = (span + 1) // 2, low < 0
            scale = torch.where(signed, torch.maximum(-low / half, high / (half - 1)).clamp(min=SMALLEST), scale)
            zero_point = torch.where(signed, self.quant_min + half, zero_point)
        return scale.float(), zero_point.long()


def scale_of(reach: Tensor, steps: float) -> Tensor:
    """The scale that spreads so many steps over a reach, as small as the reach asks for; 1 where that is 0."""
    return torch.where(reach > 0, (reach / steps).clamp(min=SMALLEST), 1.0)


def minmax(statistics: Statistics, _: Grid) -> Range:
    """Everything that was seen."""
    return statistics.low, statistics.high


def moving_average(statistics: Statistics, _: Grid) -> Range:
    """The average batch's smallest and largest value: one outlier moves it little."""
    (low, high), *later = [(low, high) for _place, low, high in statistics.ranges]
    for lower, higher in later:
        low, high = DECAY * low + (1 - DECAY) * lower, DECAY * high + (1 - DECAY) * higher
    return low, high


def percentile(statistics: Statistics, _: Grid) -> Range:
    """What is left when the outermost 0.01% of the values are cut, half on each side where there are two."""
    centers, counts = statistics.histogram()
    cumulated = counts.cumsum(0) / counts.sum()
    tail = (1 - PERCENTILE) / (2 if statistics.low < 0 < statistics.high else 1)
    low = centers[int(torch.searchsorted(cumulated, tail))] if statistics.low < 0 else statistics.low
    high = (
        centers[min(int(torch.searchsorted(cumulated, 1 - tail)), BINS - 1)] if statistics.high > 0 else statistics.high
    )
    return max(float(low), statistics.low), min(float(high), statistics.high)


def _shrunk(statistics: Statistics) -> tuple[Tensor, Tensor]:
    """Candidates ``(81,)``: both ends of the whole range, and of ever smaller parts of it."""
    shares = torch.linspace(1.0, 0.2, 81, dtype=torch.float64)
    return statistics.low * shares, statistics.high * shares


def histogram(statistics: Statistics, grid: Grid) -> Range:
    """The range with the least mean squared error of quantization to that grid."""
    centers, counts = statistics.histogram()
    low, high = _shrunk(statistics)
    scale, zero_point = (x.double()[:, None] for x in grid.affine(low, high))
    integers = (centers / scale + zero_point).round().clamp(grid.quant_min, grid.quant_max)
    best = int((((integers - zero_point) * scale - centers).square() @ counts).argmin())
    return float(low[best]), float(high[best])


def entropy(statistics: Statistics, grid: Grid) -> Range:
    """The range whose quantized distribution is closest to the real one (Kullback-Leibler; Migacz, 2017).

    What lies outside of the grid counts as the outermost bin of the real distribution, and is missing from the
    quantized one.
    """
    centers, counts = statistics.histogram()
    low, high = _shrunk(statistics)
    levels = grid.quant_max - grid.quant_min + 1
    found: list[float] = []
    for scale, zero_point in zip(*grid.affine(low, high), strict=True):
        level = (centers / scale.double() + zero_point).round().long() - grid.quant_min
        inside = (level >= 0) & (level < levels)
        real, plain, level = counts[inside].clone(), counts[inside], level[inside]
        real[0] += counts[: int(inside.double().argmax())].sum()
        real[-1] += counts.sum() - real.sum()
        sums = torch.zeros(levels, dtype=torch.float64).index_add_(0, level, plain)
        filled = torch.zeros(levels, dtype=torch.float64).index_add_(0, level, (plain > 0).double())
        coarse = torch.where(plain > 0, (sums / filled.clamp(min=1))[level], 0.0)
        p, q = real / real.sum(), (coarse + EPS) / (coarse + EPS).sum()
        found.append(float((p * ((p + EPS) / q).log()).sum()))
    best = found.index(min(found))
    return float(low[best]), float(high[best])


OBSERVERS: dict[str, Callable[[Statistics, Grid], Range]] = {
    "minmax": minmax,
    "moving_average": moving_average,
    "histogram": histogram,
    "percentile": percentile,
    "entropy": entropy,
}
WITH_HISTOGRAM = {"histogram", "percentile", "entropy"}


class ActivationObserver(ObserverBase):
    """Remembers an activation's `Statistics`, and gives the scale and zero point of a scheme.

    Args:
        scheme: a name of `OBSERVERS`.
        symmetric, quant_min, quant_max: its `Grid`.
        keep_histogram: so that any scheme can be asked for after calibration.
    """

    qscheme = torch.per_tensor_affine

    def __init__(
        self,
        scheme: str = "minmax",
        symmetric: bool = False,
        keep_histogram: bool = False,
        dtype: torch.dtype = torch.uint8,
        quant_min: int = 0,
        quant_max: int = 255,
        **_: object,
    ):
        super().__init__(dtype)
        self.scheme, self.grid = scheme, Grid(symmetric, quant_min, quant_max)
        self.quant_min, self.quant_max = quant_min, quant_max  # what torchao reads
        self.keep_histogram = keep_histogram or scheme in WITH_HISTOGRAM
        self.statistics = Statistics()

    def forward(self, x: Tensor) -> Tensor:
        if x.numel():
            self.statistics.add(x.detach(), self.keep_histogram)
        return x

    def range(self) -> Range:
        """The scheme's."""
        return OBSERVERS[self.scheme](self.statistics, self.grid)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        low, high = (torch.tensor([x], dtype=torch.float64) for x in self.range())
        return self.grid.affine(low, high)


class WeightObserver(PerChannelMinMaxObserver):
    """The largest magnitude of each output channel, and its symmetric scale: as small as the channel's weights."""

    min_val: Tensor
    max_val: Tensor

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        reach = torch.maximum(-self.min_val, self.max_val).clamp(min=0)
        return scale_of(reach, (self.quant_max - self.quant_min) / 2), torch.zeros_like(reach, dtype=torch.int64)

    def reach_at_least(self, reach: Tensor) -> None:
        """Widens the range of every channel to a reach ``(C,)`` or more."""
        self.max_val = torch.maximum(self.max_val, reach.to(self.max_val))
