"""What the page is made of: sections of figures, each a chart with its caption and the same figures as a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Table:
    """Cells as text; columns other than those named in `words` are right-aligned."""

    headers: list[str]
    rows: list[list[str]]
    words: frozenset[int] = frozenset({0})

    def align(self, column: int) -> str:
        return "word" if column in self.words else "number"


@dataclass(frozen=True)
class Figure:
    """A chart and the table beside it.

    Attributes:
        title: what it shows.
        table: the same figures.
        chart: a Vega-Lite specification; None where the table stands alone.
        summary: what the chart shows, in a sentence: its alternative text.
        caption: how to read it.
        wide: takes the whole width of the page.
        min_width: pixels below which the chart scrolls within its frame.
    """

    title: str
    table: Table
    chart: dict[str, Any] | None = None
    summary: str = ""
    caption: str = ""
    wide: bool = False
    min_width: int = 0

    @property
    def height(self) -> int:
        """Pixels to keep free for the chart until it is drawn."""
        return int(self.chart.get("height", 320)) + 60 if self.chart else 0


@dataclass(frozen=True)
class Group:
    """Figures that belong together: those of one run, say; folded away unless `unfolded`."""

    title: str
    figures: list[Figure]
    unfolded: bool = True


@dataclass(frozen=True)
class Section:
    """A question, and the groups of figures that answer it."""

    id: str
    title: str
    lead: str
    groups: list[Group] = field(default_factory=list)
