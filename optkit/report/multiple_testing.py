"""Tests of accuracy corrected for how many variants a run compares (Holm, 1979)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from optkit.core.setting import Setting
from optkit.core.statistics import CONFIDENCE, holm

Row = dict[str, Any]
TOLERANCES = (0.005, 0.01, 0.02, 0.05)  # shares of accuracy that somebody may be ready to give up
LEVEL = (1 - CONFIDENCE) / 2  # one-sided: a corrected p-value up to it says "surely"


def loss_within_p(gained: int, lost: int, n: int, tolerance: float) -> float:
    """p-value of "the loss of accuracy is at least this large", against "it is smaller" (Tango, 1998): a score test.

    Args:
        gained: examples that only the candidate got right.
        lost: examples that only the reference got right.
        n: all examples.
        tolerance: the loss, a share between 0 and 1.
    """
    from scipy.stats import norm

    b = -lost - gained + (2 * n - lost + gained) * tolerance
    gaining = (math.sqrt(b * b + 8 * n * gained * tolerance * (1 - tolerance)) - b) / (4 * n)
    error = math.sqrt(n * (2 * gaining + tolerance * (1 - tolerance)))
    return float(norm.cdf((lost - gained - n * tolerance) / error))


def correct_for_many(rows: Sequence[Row]) -> None:
    """Adds corrected p-values to rows, each over the variants of its run on its engine, batch size and length of texts.

    ``accuracy_delta_p_holm``: of no change against the baseline. ``accuracy_loss_within_p`` and
    ``accuracy_loss_within_p_holm``: of a loss of at least each of `TOLERANCES`, by tolerance. ``accuracy_compared``: of
    how many variants. ``control_margin_p_holm``: of no difference from a control. The baseline's own rows are not
    corrected.
    """
    for row in rows:
        within = None
        if row["accuracy_delta_counts"] is not None:
            gained, lost = row["accuracy_delta_counts"]
            within = {str(t): loss_within_p(gained, lost, row["examples"], t) for t in TOLERANCES}
        row |= {
            "accuracy_delta_p_holm": row["accuracy_delta_p"],
            "accuracy_loss_within_p": within,
            "accuracy_loss_within_p_holm": None if within is None else dict(within),
            "accuracy_compared": None,
            "control_margin_p_holm": row["control_margin_p"],
        }
    for own in _families([r for r in rows if r["step"] > 0 and r["accuracy_delta_p"] is not None]):
        _put(own, "accuracy_delta_p_holm", holm([r["accuracy_delta_p"] for r in own]))
        for tolerance in map(str, TOLERANCES):
            corrected = holm([r["accuracy_loss_within_p"][tolerance] for r in own])
            for row, p_value in zip(own, corrected, strict=True):
                row["accuracy_loss_within_p_holm"][tolerance] = p_value
        _put(own, "accuracy_compared", [len(own)] * len(own))
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
