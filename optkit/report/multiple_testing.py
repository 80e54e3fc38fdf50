"""Tests of quality corrected for how many variants a run compares (Holm, 1979)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optkit.core.setting import Setting
from optkit.core.statistics import CONFIDENCE, holm
from optkit.report.paired import TOLERANCES

Row = dict[str, Any]
LEVEL = (1 - CONFIDENCE) / 2  # one-sided: a corrected p-value up to it says "surely"


def correct_for_many(rows: Sequence[Row]) -> None:
    """Adds corrected p-values to rows, each over the variants of its run on its engine, batch size and length of texts.

    ``quality_delta_p_holm``: of no change against the baseline. ``quality_loss_within_p_holm``: of a
    loss of at least each of `TOLERANCES`, by tolerance. ``quality_compared``: of
    how many variants. ``control_margin_p_holm``: of no difference from a control. The baseline's own rows are not
    corrected.
    """
    for row in rows:
        within = row["quality_loss_within_p"]
        row |= {
            "quality_delta_p_holm": row["quality_delta_p"],
            "quality_loss_within_p_holm": None if within is None else dict(within),
            "quality_compared": None,
            "control_margin_p_holm": row["control_margin_p"],
        }
    for own in _families([r for r in rows if r["step"] > 0 and r["quality_delta_p"] is not None]):
        _put(own, "quality_delta_p_holm", holm([r["quality_delta_p"] for r in own]))
        for tolerance in map(str, TOLERANCES):
            corrected = holm([r["quality_loss_within_p"][tolerance] for r in own])
            for row, p_value in zip(own, corrected, strict=True):
                row["quality_loss_within_p_holm"][tolerance] = p_value
        _put(own, "quality_compared", [len(own)] * len(own))
    for own in _families([r for r in rows if r["step"] > 0 and r["control_margin_p"] is not None]):
        _put(own, "control_margin_p_holm", holm([r["control_margin_p"] for r in own]))


def _families(rows: Sequence[Row]) -> list[list[Row]]:
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault((row["run"], row["engine"], Setting.of(row)), []).append(row)
    return list(found.values())


def _put(rows: Sequence[Row], name: str, values: Sequence[Any]) -> None:
    for row, value in zip(rows, values, strict=True):
        row[name] = value
