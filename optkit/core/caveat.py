"""Why a timing cannot be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optkit.core.records import Measurement


def is_disturbed(series: Sequence[Measurement]) -> bool | None:
    """Whether other work ran while latencies of the same rounds were taken; None if that is not known."""
    marks = [m.conditions["disturbed"] for m in series if m.conditions.get("disturbed") is not None]
    return any(marks) if marks else None


def timing_caveat(series: Sequence[Measurement], intervals: Sequence[Any]) -> str | None:
    """Why figures from latencies of the same rounds cannot be trusted, for a table's footnote; None where they can.

    Args:
        series: the latencies, that of the baseline beside them included.
        intervals: of the figures that were made from them; None for one that could not be given.
    """
    if is_disturbed(series):
        mean, peak = (_largest(series, name) for name in ("other_load", "other_load_peak"))
        if peak is not None and peak > 2 * (mean or 0.0):
            return f"other work kept {peak:.1f} cores busy for a moment"
        return "other work was running" if mean is None else f"other work kept {mean:.1f} cores busy"
    if any(interval is None for interval in intervals):
        return f"{len(series[0].raw)} rounds give no interval"
    return None


def _largest(series: Sequence[Measurement], condition: str) -> float | None:
    return max((m.conditions[condition] for m in series if m.conditions.get(condition) is not None), default=None)
