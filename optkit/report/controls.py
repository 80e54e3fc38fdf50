"""The controls in words: whether each technique beats them, beyond chance or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from optkit.core.statistics import CONFIDENCE

Row = dict[str, Any]
BEATS, WORSE, NEITHER = "beats", "is worse than", "does not beat"


def against_controls(rows: Sequence[Row], show: Callable[[float], str]) -> list[str]:
    """A sentence for each control and each technique that it stands beside.

    It is about the first engine at its largest batch, and names those engines and batch sizes that judge otherwise.

    Args:
        rows: of any runs.
        show: a difference of accuracies, a share, as points.
    """
    several = len({row["run"] for row in rows}) > 1
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        # the control of the baseline itself says nothing about a technique
        if row["control"] and row["step"] > 0:
            found.setdefault((row["run"], row["control"], row["step"], row["stage"]), []).append(row)
    lines = []
    for (run, control, _, stage), own in found.items():
        judged = [row for row in own if row["control_margin"] is not None]
        if judged:
            lines.append((f"{run}: " if several else "") + _sentence(judged, show))
        elif any(row["stage"] == stage and not row["control"] and row["run"] == run for row in rows):
            lines.append(f"{stage} and {control} were not judged on the same examples of one engine.")
    return lines


def judgement(row: Row) -> str:
    """Whether the technique beats the control of this row beyond chance, corrected for how many are compared."""
    p_value = row["control_margin_p_holm"]
    if p_value is None or p_value > 1 - CONFIDENCE or row["control_margin"] == 0:
        return NEITHER
    return BEATS if row["control_margin"] > 0 else WORSE


def _sentence(rows: Sequence[Row], show: Callable[[float], str]) -> str:
    row = max((r for r in rows if r["engine"] == rows[0]["engine"]), key=lambda r: r["batch_size"])
    found = judgement(row)
    low, high = map(show, row["control_margin_ci"])
    text = (
        f"{row['stage']} {found} {row['control']} beyond chance: {show(row['control_margin'])} points [{low}, {high}], "
        f"corrected p {_p(row['control_margin_p_holm'])}, on {_place(row)}"
    )
    others: dict[str, list[str]] = {}
    for other in rows:
        if judgement(other) != found:
            others.setdefault(judgement(other), []).append(_place(other))
    return text + "".join(f"; it {what} it on {', '.join(places)}" for what, places in others.items()) + "."


def _place(row: Row) -> str:
    length = f", {row['sequence_length']} tokens" if row["sequence_length"] else ""
    return f"{row['engine']} at batch {row['batch_size']}{length}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
