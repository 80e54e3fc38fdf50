"""The verdict: which variant to serve, for how much accuracy, and what else can be had for more of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optkit.report.many import LEVEL, TOLERANCES
from optkit.report.page.words import name, points, times
from optkit.report.rows import REFERENCE, Row, place


@dataclass(frozen=True)
class Choice:
    """What to serve for a loss of accuracy that can be borne.

    Attributes:
        tolerance: the loss that is surely (95%) not exceeded; None: no loss that this test can tell from none.
        row: the fastest row that keeps it; None where none is faster than the baseline.
    """

    tolerance: float | None
    row: Row | None


@dataclass(frozen=True)
class Verdict:
    """A run in one sentence, what qualifies it, and the choice for each tolerance."""

    sentence: str
    remarks: list[str]
    choices: list[Choice]

    @property
    def row(self) -> Row | None:
        """The row that the sentence is about."""
        return self.choices[0].row


def verdict(rows: Sequence[Row]) -> Verdict:
    """Judges the rows of one run.

    Rows compete by the lower end of their speedup's interval against the baseline on eager in the same setting, so
    a lucky figure with a wide interval does not win. "Surely within a loss" is corrected for the number of variants
    that are compared. "Cannot be told from none" is not: a correction would let larger losses pass.
    """
    rows = [row for row in rows if row.get("control") is None]
    choices = [_choose(rows, tolerance) for tolerance in (None, *TOLERANCES)]
    best = choices[0].row
    remarks = []
    if best is None:
        sentence = _without_choice([row for row in rows if row["speedup"] is not None and row["step"] > 0])
    elif best["step"] == 0:
        sentence = (
            f"No technique pays without a measurable loss: the fastest that keeps its accuracy is the baseline "
            f"itself, on "
            f"{place(best)}, {times(best, 'speedup')} as fast as on {REFERENCE}."
        )
    else:
        sentence = (
            f"“{_called(best)}” on {place(best)} is {times(best, 'speedup')} as fast as the baseline, for an accuracy "
            f"change of {points(best, 'accuracy_delta')} that this test cannot tell from none."
        )
        if best["engine"] != REFERENCE and best["speedup_same_engine"] is not None:
            share = times(best, "speedup_same_engine")
            remarks.append(
                f"On the same engine the techniques alone make it {share} as fast; the engine does the rest."
            )
    more = next((c for c in choices[1:] if c.row is not None and c.row is not best and _beats(c.row, best)), None)
    if more is not None and more.row is not None:
        remarks.append(
            f"For a measured change of {points(more.row, 'accuracy_delta')}, “{_called(more.row)}” on "
            f"{place(more.row)} is "
            f"{times(more.row, 'speedup')} as fast."
        )
    if best is not None and best["accuracy_delta_detectable"]:
        remarks.append(
            f"{best['examples']:,} examples show a change of {100 * best['accuracy_delta_detectable']:.1f} "
            f"points or more "
            f"four times in five; smaller ones can hide."
        )
    hidden = [r for r in rows if _told_alone(r) and r["speedup_ci"] is not None and r["speedup_ci"][0] > 1]
    hidden = [r for r in hidden if _beats(r, best)]
    if hidden:
        row = max(hidden, key=lambda r: r["speedup_ci"][0])
        remarks.append(
            f"“{_called(row)}” on {place(row)} is faster and does not count as keeping its accuracy: its change of "
            f"{points(row, 'accuracy_delta')} shows by itself (p = {row['accuracy_delta_p']:.3f}), though not among "
            f"{row['accuracy_compared']} variants (p = {row['accuracy_delta_p_holm']:.3f})."
        )
    candidates = sum(row["speedup"] is not None for row in rows)
    compared = max((row["accuracy_compared"] or 0 for row in rows), default=0)
    if best is not None and candidates > 2:
        corrected = (
            f" Losses called sure are corrected for {compared} variants; speedups are not." if compared > 1 else ""
        )
        remarks.append(
            f"It is the best of {candidates} measured rows.{corrected} The best of many looks a little too good."
        )
    return Verdict(sentence, remarks, choices)


def _without_choice(timed: Sequence[Row]) -> str:
    """What there is to say of variants none of which is known to be faster and to keep its accuracy."""
    if not timed:
        return "This run holds nothing to compare: no variant was timed beside the baseline."
    if any(row["accuracy_delta_ci"] is not None for row in timed):
        return "Nothing here is measurably faster than the baseline without a measurable loss of accuracy."
    fastest = max(timed, key=lambda r: r["speedup_ci"][0])
    return (
        f"No change of accuracy is known: of the baseline on {REFERENCE} there are no answers to the same examples. "
        f"The fastest, “{_called(fastest)}” on {place(fastest)}, is {times(fastest, 'speedup')} as fast as it."
    )


def keeps_accuracy(row: Row, tolerance: float | None = None) -> bool:
    """Whether the interval of the change of accuracy reaches up to none, or stays within a tolerated loss.

    The loss of a variant after the baseline must stay within it by the corrected test, too.
    """
    ci = row["accuracy_delta_ci"]
    if ci is None:
        return False
    if tolerance is None:
        return ci[1] >= 0
    return ci[0] >= -tolerance and (row["step"] == 0 or row["accuracy_loss_within_p_holm"][str(tolerance)] <= LEVEL)


def _told_alone(row: Row) -> bool:
    """Whether a loss shows in its own test, and not in the one that is corrected for the others."""
    alone, corrected = row["accuracy_delta_p"], row["accuracy_delta_p_holm"]
    return alone is not None and not keeps_accuracy(row) and alone <= 2 * LEVEL < corrected


def _choose(rows: Sequence[Row], tolerance: float | None) -> Choice:
    fit = [r for r in rows if keeps_accuracy(r, tolerance) and r["speedup_ci"] is not None and r["speedup_ci"][0] > 1]
    return Choice(tolerance, max(fit, key=lambda r: r["speedup_ci"][0], default=None))


def _called(row: Row) -> str:
    """The stage alone where that is clear."""
    plain = f"{row['step']} {row['stage']}"
    return row["stage"] if name(row) == plain else name(row)


def _beats(row: Row, other: Row | None) -> bool:
    return other is None or row["speedup_ci"][0] > other["speedup_ci"][0]
