"""What stages cost to run, and how many requests pay that back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from optkit.report.rows import Row, is_trusted


@dataclass(frozen=True)
class BreakEven:
    """After how many examples, or tokens, a variant has saved the time that its stages took.

    Attributes:
        row: where the saving was measured.
        cost_s: wall seconds of its stage and of all between it and the baseline.
        saved_s: seconds saved for each of them, against the baseline on the same engine.
        examples: `cost_s` over `saved_s`, with the bounds of the speedup's interval; infinite where it saves nothing.
    """

    row: Row
    cost_s: float
    saved_s: float
    examples: float
    low: float
    high: float


def break_evens(rows: Sequence[Row]) -> list[BreakEven]:
    """For each row of one run behind the baseline that was timed beside it on its own engine.

    A second of the stages counts as a second of serving: both are wall time of the same machine. The baseline's own
    making is not charged, and the engine's gain is not credited. A row whose timing cannot be trusted has none.
    """
    by_variant = {row["variant"]: row for row in rows}
    found = []
    for row in rows:
        if row["step"] > 0 and is_trusted(row) and row["speedup_same_engine"] is not None:
            baseline_s = row["speedup_same_engine"] / row["throughput"]
            cost_s = chain_cost(row, by_variant)
            saved, least, most = (
                baseline_s * (1 - 1 / s) for s in (row["speedup_same_engine"], *row["speedup_same_engine_ci"])
            )
            found.append(BreakEven(row, cost_s, saved, *(_examples(cost_s, s) for s in (saved, most, least))))
    return found


def chain_cost(row: Row, by_variant: dict[str, Row]) -> float:
    """Wall seconds of the stages from the baseline up to a row's variant."""
    total, seen = 0.0, set()
    step: Row | None = row
    while step is not None and step["step"] > 0 and step["variant"] not in seen:
        total += step["stage_cost_s"]
        seen.add(step["variant"])
        step = by_variant.get(step["parent"] or "")
    return total


def _examples(cost_s: float, saved_s: float) -> float:
    return cost_s / saved_s if saved_s > 0 else math.inf
