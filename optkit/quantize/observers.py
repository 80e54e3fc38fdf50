"""Observers: what calibration remembers of an activation, and the range that each scheme reads off it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torchao.quantization.pt2e.observer import ObserverBase

BINS = 2048
DECAY = 0.99
PERCENTILE = 0.9999
EPS = 1e-8


@dataclass
class Statistics:
    """One activation over all calibration batches, in a few kilobytes.

    Attributes:
        low, high: smallest and largest value.
        average_low, average_high: moving averages of the batches' own.
        counts: histogram of ``BINS`` equal bins from ``-reach`` to ``reach``; None where no scheme asks for it.
        reach: always a power of two times the first batch's, so that growing merges whole bins.
    """

    low: float = float("inf")
    high: float = float("-inf")
    average_low: float | None = None
    average_high: float | None = None
    counts: Tensor | None = None
    reach: float = 0.0
    batches: int = field(default=0)

    def add(self, x: Tensor, histogram: bool) -> None:
        """Takes in one batch."""
        low, high = (float(v) for v in torch.aminmax(x))
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.average_low is None or self.average_high is None:
            self.average_low, self.average_high = low, high
        else:
            self.average_low = DECAY * self.average_low + (1 - DECAY) * low
            self.average_high = DECAY * self.average_high + (1 - DECAY) * high
        self.batches += 1
        if histogram:
            self._count(x, max(-low, high, EPS))

    def _count(self, x: Tensor, reach: float) -> None:
        if self.counts is None:
            self.counts, self.reach = torch.zeros(BINS, dtype=torch.float64), reach
        while self.reach < reach:
            merged = self.counts.view(-1, 2).sum(1)
            self.counts = torch.nn.functional.pad(merged, (BINS // 4, BINS // 4))
            self.reach *= 2
        self.counts += torch.histc(x.float(), BINS, -self.reach, self.reach).double().cpu()

    def histogram(self) -> tuple[Tensor, Tensor]:
        """Centers and counts of the bins ``(BINS,)``."""
        assert self.counts is not None
        width = 2 * self.reach / BINS
        return (torch.arange(BINS, dtype=torch.float64) + 0.5) * width - self.reach, self.counts


Range = tuple[float, float]


def minmax(statistics: Statistics, _: int) -> Range:
    """Everything that was seen."""
    return statistics.low, statistics.high


def moving_average(statistics: Statistics, _: int) -> Range:
    """The average batch's smallest and largest value: one outlier moves it little."""
    assert statistics.average_low is not None
    assert statistics.average_high is not None
    return statistics.average_low, statistics.average_high


def percentile(statistics: Statistics, _: int) -> Range:
    """What is left when the outermost 0.01% of the values are cut, half on each side where there are two."""
    centers, counts = statistics.histogram()
    cumulated = counts.cumsum(0) / counts.sum()
    tail = (1 - PERCENTILE) / (2 if statistics.low < 0 < statistics.high else 1)
    low = centers[int(torch.searchsorted(cumulated, tail))] if statistics.low < 0 else statistics.low
    high = (
        centers[min(int(torch.searchsorted(cumulated, 1 - tail)), BINS - 1)] if statistics.high > 0 else statistics.high
    )
    return max(float(low), statistics.low), min(float(high), statistics.high)


def _shrunk(statistics: Statistics) -> list[Range]:
    """Candidates: the whole range, and ever smaller parts of it."""
    return [(statistics.low * share, statistics.high * share) for share in torch.linspace(1.0, 0.2, 81).tolist()]


def _rounded(centers: Tensor, low: float, high: float, levels: int) -> Tensor:
    """The bins' centers as they come out of quantization to that range."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / (levels - 1), EPS)
    return (((centers - low) / scale).round().clamp(0, levels - 1)) * scale + low


def histogram(statistics: Statistics, levels: int) -> Range:
    """The range with the least mean squared error of quantization to so many levels."""
    centers, counts = statistics.histogram()
    errors = [
        float((counts * (_rounded(centers, low, high, levels) - centers).square()).sum())
        for low, high in _shrunk(statistics)
    ]
    return _shrunk(statistics)[errors.index(min(errors))]


def entropy(statistics: Statistics, levels: int) -> Range:
    """The range whose quantized distribution is closest to the real one (Kullback-Leibler; Migacz, 2017).

    What lies outside counts as the outermost bin of the real distribution, and is missing from the quantized one.
    """
    centers, counts = statistics.histogram()
    found: list[float] = []
    for low, high in _shrunk(statistics):
        inside = (centers >= min(low, 0.0)) & (centers <= max(high, 0.0))
        if not inside.any():
            found.append(float("inf"))
            continue
        real, plain = counts[inside].clone(), counts[inside]
        real[0] += counts[centers < min(low, 0.0)].sum()
        real[-1] += counts[centers > max(high, 0.0)].sum()
        level = (
            ((centers[inside] - min(low, 0.0)) / max(max(high, 0.0) - min(low, 0.0), EPS) * (levels - 1)).round().long()
        )
        sums = torch.zeros(levels, dtype=torch.float64).index_add_(0, level, plain)
        filled = torch.zeros(levels, dtype=torch.float64).index_add_(0, level, (plain > 0).double())
        coarse = torch.where(plain > 0, (sums / filled.clamp(min=1))[level], 0.0)
        p, q = real / real.sum(), (coarse + EPS) / (coarse + EPS).sum()
        found.append(float((p * ((p + EPS) / q).log()).sum()))
    return _shrunk(statistics)[found.index(min(found))]


# of an activation that will have so many levels
OBSERVERS: dict[str, Callable[[Statistics, int], Range]] = {
    "minmax": minmax,
    "moving_average": moving_average,
    "histogram": histogram,
    "percentile": percentile,
    "entropy": entropy,
}
WITH_HISTOGRAM = {"histogram", "percentile", "entropy"}


def affine(low: Tensor, high: Tensor, symmetric: bool, quant_min: int, quant_max: int) -> tuple[Tensor, Tensor]:
    """The scale (fp32) and zero point of a range, which is widened to take in 0.

    Args:
        low, high: ends of the range, of any one shape.
        symmetric: as for `ActivationObserver`.
        quant_min, quant_max: the integers.
    """
    low, high = low.double().clamp(max=0), high.double().clamp(min=0)
    span = quant_max - quant_min
    scale = ((high - low) / span).clamp(min=EPS)
    zero_point = (quant_min + (-low / scale).round()).clamp(quant_min, quant_max)
    if symmetric:
        half, signed = (span + 1) // 2, low < 0
        scale = torch.where(signed, torch.maximum(-low / half, high / (half - 1)).clamp(min=EPS), scale)
        zero_point = torch.where(signed, quant_min + half, zero_point)
    return scale.float(), zero_point.long()


class ActivationObserver(ObserverBase):
    """Remembers an activation's `Statistics`, and gives the scale and zero point of a scheme.

    Args:
        scheme: a name of `OBSERVERS`.
        symmetric: zero point in the middle for activations of both signs; one that is never negative has it at 0.
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
        self.scheme, self.symmetric = scheme, symmetric
        self.keep_histogram = keep_histogram or scheme in WITH_HISTOGRAM
        self.quant_min, self.quant_max = quant_min, quant_max
        self.statistics = Statistics()

    def forward(self, x: Tensor) -> Tensor:
        if x.numel():
            self.statistics.add(x.detach(), self.keep_histogram)
        return x

    def range(self) -> Range:
        """The scheme's."""
        return OBSERVERS[self.scheme](self.statistics, self.quant_max - self.quant_min + 1)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        low, high = (torch.tensor([x], dtype=torch.float64) for x in self.range())
        return affine(low, high, self.symmetric, self.quant_min, self.quant_max)
