"""The controls in words: whether each technique beats them, beyond chance or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optkit.core.setting import Setting
from optkit.core.statistics import CONFIDENCE
from optkit.report.rows import Row, describe_setting
from optkit.report.written import Written

Show = Callable[[Written, float], str]

BEATS, WORSE, NEITHER = "beats", "is worse than", "does not beat"


def against_controls(rows: Sequence[Row], show: Show = Written.signed) -> list[str]:
    """A sentence for each control and each technique that it stands beside.

    It is about the first engine at its longest texts and largest batch, and names those places that judge otherwise.

    Args:
        rows: of any runs.
        show: a difference of the metric as text.
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


def pooled_against_controls(batches: Sequence[Mapping[str, Any]], written: Written) -> list[str]:
    """A sentence for each control and each technique that it stands beside, over the seeds of an ablation.

    It is about the longest texts and the largest batch size, and names the places that judge otherwise.

    Args:
        batches: of ``ablation.json``.
        written: how its metric is.
    """
    found: dict[tuple[Any, ...], list[Row]] = {}
    for batch in sorted(batches, key=Setting.of, reverse=True):
        for entry in batch["controls"]:
            here = entry | Setting.of(batch).conditions
            found.setdefault((entry["control"], entry["step"], entry["stage"]), []).append(here)
    lines = []
    for (control, _, stage), entries in found.items():
        judged = [entry for entry in entries if entry["quality"]]
        if judged:
            lines.append(_pooled_sentence(judged, written))
        else:
            lines.append(f"{stage} and {control} were not judged on the same examples of one engine.")
    return lines


def pooled_judgement(entry: Mapping[str, Any], written: Written) -> str:
    """Whether the technique beats the control over seeds: whether the 95% interval of the margin excludes 0."""
    low, high = written.gains(entry["quality"]["ci"] or (0.0, 0.0))
    if low <= 0 <= high:
        return NEITHER
    return BEATS if low > 0 else WORSE


def judgement(row: Row) -> str:
    """Whether the technique beats the control of this row beyond chance, corrected for how many are compared."""
    p_value = row["control_margin_p_holm"]
    if p_value is None or p_value > 1 - CONFIDENCE or row["control_margin"] == 0:
        return NEITHER
    return BEATS if Written.of(row).gain(row["control_margin"]) > 0 else WORSE


def _sentence(rows: Sequence[Row], show: Show) -> str:
    row = max((r for r in rows if r["engine"] == rows[0]["engine"]), key=Setting.of)
    found, written = judgement(row), Written.of(row)
    margin, low, high = (show(written, value) for value in (row["control_margin"], *row["control_margin_ci"]))
    text = (
        f"{row['stage']} {found} {row['control']} beyond chance: {margin}{written.change_unit} [{low}, {high}], "
        f"corrected p {_p(row['control_margin_p_holm'])}, on {describe_setting(row)}"
    )
    return text + _otherwise(found, [(judgement(other), describe_setting(other)) for other in rows])


def _pooled_sentence(entries: Sequence[Row], written: Written) -> str:
    entry = entries[0]
    found, margin = pooled_judgement(entry, written), entry["quality"]
    interval = f" {written.signed_bounds(margin['ci'])}".rstrip()
    difference = f"{written.signed(margin['value'])}{written.change_unit}{interval}"
    text = (
        f"{entry['stage']} {found} {entry['control']} beyond chance: {difference} "
        f"over {_seeds(entry['seeds'])} and the test examples, on {describe_setting(entry)}"
    )
    if len(entry["seeds"]) == 1:
        text += "; one seed says nothing about others"
    if entry["seeds_without"]:
        text += f"; without {_seeds(entry['seeds_without'])}, where one of the two is missing"
    return text + _otherwise(found, [(pooled_judgement(other, written), describe_setting(other)) for other in entries])


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _otherwise(found: str, judged: Sequence[tuple[str, str]]) -> str:
    """The end of a sentence: the places that judge otherwise."""
    others: dict[str, list[str]] = {}
    for what, where in judged:
        if what != found:
            others.setdefault(what, []).append(where)
    return "".join(f"; it {what} it on {', '.join(places)}" for what, places in others.items()) + "."


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
