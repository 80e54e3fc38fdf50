"""What a search is to find: costs to make small, and limits to keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optkit.searches.trial import Figures, Look

BEST = "best"  # the engine on which a variant is fastest
COST = "cost"
UNSURE = 0.01  # share of the baseline's quality by which engines may differ from PyTorch
SLACK = 1.1  # training after the first look changes a variant's speed by less than this factor
# what may be made small, and the column of a report that says it; of latency it is the inverse of the speedup, and the
# dollars of serving come from `optkit.costs`
COSTS = {
    "latency": "speedup",
    "size": "size_mb",
    "memory": "peak_memory_mb",
    "macs": "macs",
    "energy": "energy_j",
    COST: "dollars_a_million",
}
STATIC = ("macs", "size")  # costs that need no engine, and attributes of a `Look`


@dataclass(frozen=True)
class Goal:
    """What a search is to find.

    Attributes:
        minimize: names of `COSTS`; the first decides the winner.
        max_loss: the largest loss of the first metric against the baseline, in the metric's unit; None for any.
        min_speedup: over the baseline on the reference engine; None for any.
    """

    minimize: tuple[str, ...]
    max_loss: float | None = None
    min_speedup: float | None = None

    def point(self, figures: Figures) -> list[float]:
        """What is to be small: the loss, and each cost."""
        return [figures.loss, *(figures.costs[cost] for cost in self.minimize)]

    @property
    def is_timed(self) -> bool:
        """Whether a variant must be timed to know whether it is good: MACs and size are known without."""
        return self.min_speedup is not None or not set(self.minimize) <= set(STATIC)

    def early_point(self, look: Look, timed: Figures | None) -> list[float]:
        """What is to be small after a part of the training; latency stands for all costs that only engines tell.

        Args:
            look: at the variant.
            timed: its figures, after this or an earlier part.
        """
        costs = dict.fromkeys(name if name in STATIC else "latency" for name in self.minimize)
        known = {name: getattr(look, name) for name in STATIC} | ({} if timed is None else timed.costs)
        return [look.loss, *(known[cost] for cost in costs)]

    def misses(self, figures: Figures) -> dict[str, float]:
        """By how much each limit is missed; 0 or below where it is kept."""
        found = {}
        if self.max_loss is not None:
            found["loss"] = figures.loss - self.max_loss
        if self.min_speedup is not None:
            found["speedup"] = self.min_speedup - figures.speedup
        return found

    def is_too_slow(self, figures: Figures) -> bool:
        """Whether the rest of its training cannot bring a variant to the speed that is asked for."""
        if self.min_speedup is None or figures.caveat is not None:
            return False
        highest = figures.speedup if figures.speedup_ci is None else figures.speedup_ci[1]
        return highest * SLACK < self.min_speedup

    def loses_too_much(self, loss: float, quality: float) -> bool:
        """Whether a variant is so far beyond the limit that timing it is of no use.

        Args:
            loss: of PyTorch's answers; those of an engine differ a little.
            quality: of the baseline.
        """
        return self.max_loss is not None and loss - self.max_loss > max(self.max_loss, UNSURE * abs(quality))

    def is_met(self, figures: Figures) -> bool:
        """Whether all limits are kept."""
        return all(miss <= 0 for miss in self.misses(figures).values())

    def distance(self, figures: Figures) -> float:
        """By how much the limits are missed together, each as a share of itself."""
        scales = {"loss": self.max_loss or abs(figures.quality), "speedup": self.min_speedup}
        return sum(max(miss, 0.0) / (scales[name] or 1.0) for name, miss in self.misses(figures).items())
