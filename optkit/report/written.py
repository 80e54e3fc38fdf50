"""How a metric is written: shares in percent and points, everything else in its own unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SHARE = "share"
PLAIN = ""
UNNAMED = (PLAIN, "1")


@dataclass(frozen=True)
class Written:
    """A metric's way to write its values.

    Attributes:
        metric: its name.
        unit: of its values; ``1`` where they have none, and empty for plain numbers with two decimals.
        kind: what values there are, see `optkit.core.metric`; shares are written in percent.
        higher_is_better: which way is up.
    """

    metric: str = "accuracy"
    unit: str = "1"
    kind: str = SHARE
    higher_is_better: bool = True

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Written:
        """Of a row, or of whatever else has its keys; accuracy where it has none."""
        if "metric" not in row:
            return cls()
        return cls(row["metric"], row["unit"], row["metric_kind"], row["higher_is_better"])

    @property
    def is_share(self) -> bool:
        return self.kind == SHARE

    @property
    def factor(self) -> float:
        """What values are multiplied with to be written."""
        return 100.0 if self.is_share else 1.0

    @property
    def name(self) -> str:
        """In a sentence."""
        return self.metric.replace("_", " ")

    @property
    def title(self) -> str:
        """Above a column, or at an axis."""
        return f"{self.name}, %" if self.is_share else f"{self.name}{self._of_unit}"

    @property
    def change_title(self) -> str:
        """Above a column of differences."""
        return "change, points" if self.is_share else f"change{self._of_unit}"

    @property
    def effect_title(self) -> str:
        """Above a column of effects on the metric."""
        return f"{self.name}, points" if self.is_share else self.title

    @property
    def change_unit(self) -> str:
        """Behind a difference in a sentence, with the space before it."""
        return " points" if self.is_share else self._behind

    @property
    def _of_unit(self) -> str:
        return "" if self.unit in UNNAMED else f", {self.unit}"

    @property
    def _behind(self) -> str:
        return "" if self.unit in UNNAMED else f" {self.unit}"

    def number(self, value: float) -> str:
        """A value without its unit."""
        if self.unit == PLAIN:
            return f"{value:,.2f}"
        return f"{100 * value:.1f}" if self.is_share else f"{value:.4g}"

    def value(self, value: float) -> str:
        """A value with its unit."""
        return f"{self.number(value)}%" if self.is_share else f"{self.number(value)}{self._behind}"

    def signed(self, difference: float) -> str:
        """A difference without its unit, with its sign."""
        if self.unit == PLAIN:
            return f"{difference:+,.2f}"
        return f"{100 * difference:+.1f}" if self.is_share else f"{difference:+.3g}"

    def bounds(self, ci: Sequence[float] | None) -> str:
        """The bounds of a value in brackets; nothing where there are none."""
        return "" if ci is None else f"[{self.number(ci[0])}, {self.number(ci[1])}]"

    def signed_bounds(self, ci: Sequence[float] | None) -> str:
        """The bounds of a difference in brackets; nothing where there are none."""
        return "" if ci is None else f"[{self.signed(ci[0])}, {self.signed(ci[1])}]"

    def gain(self, difference: float) -> float:
        """A difference, above 0 where it is an improvement."""
        return difference if self.higher_is_better else -difference

    def gains(self, ci: Sequence[float]) -> tuple[float, float]:
        """The bounds of a difference as a gain, the lower one first."""
        low, high = sorted(map(self.gain, ci))
        return low, high

    def tolerated(self, loss: float) -> str:
        """A loss that can be borne, as a share of `optkit.report.multiple_testing.TOLERANCES`."""
        return f"{100 * loss:g} points" if self.is_share else f"{100 * loss:g}% of the baseline's"


ACCURACY = Written()


def first(rows: Sequence[Mapping[str, Any]]) -> Written:
    """The way that the first row is written in; accuracy's where there is none."""
    return Written.of(rows[0]) if rows else ACCURACY


def common(rows: Sequence[Mapping[str, Any]]) -> Written | None:
    """The way that all rows are written in; None where they are of different metrics."""
    found = {Written.of(row) for row in rows} or {ACCURACY}
    return found.pop() if len(found) == 1 else None
