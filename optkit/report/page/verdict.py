"""The verdict: which variant to serve, its loss of quality, and the fastest variants for larger losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from optkit.core.records import folder_of
from optkit.core.setting import Setting
from optkit.core.statistics import Estimate
from optkit.report.caveats import MARK, doubtful, remedy
from optkit.report.multiple_testing import LEVEL
from optkit.report.page.chain_verdict import judge_chain
from optkit.report.page.formatting import against, called, difference, headline_ratio, times
from optkit.report.paired import TOLERANCES
from optkit.report.rows import Row, describe_setting, is_trusted
from optkit.report.written import Written

MOST_SETTINGS = 4


@dataclass(frozen=True)
class Choice:
    """The variant to serve for a tolerated loss of quality.

    Attributes:
        tolerance: the loss that is surely (95%) not exceeded; None: no loss that this test can tell from none.
        row: the fastest row that keeps it; None where none is faster than the baseline.
    """

    tolerance: float | None
    row: Row | None


@dataclass(frozen=True)
class Verdict:
    """A run in a few sentences, and the choice for each tolerance.

    Attributes:
        sentence: what to serve, how fast it is, and what it costs.
        chain: what the whole chain did, and which of its steps did not pay; may be empty.
        doubt: the rows whose timing cannot be trusted, which nothing else here is about; may be empty.
        command: what times them again; empty where there are none, or where the run's folder is not known.
        remarks: what qualifies the sentence.
    """

    sentence: str
    choices: list[Choice]
    chain: str = ""
    doubt: str = ""
    command: str = ""
    remarks: list[str] = field(default_factory=list)

    @property
    def row(self) -> Row | None:
        """The row that the sentence is about."""
        return self.choices[0].row

    @property
    def lines(self) -> list[str]:
        """The verdict without its remarks, for a terminal."""
        return [line for line in (self.sentence, self.chain, self.doubt) if line]


def verdict(rows: Sequence[Row], folder: Path | None = None) -> Verdict:
    """Judges the rows of one run.

    Rows compete by the lower end of their speedup's interval against the baseline on the reference engine in the same
    setting, so a lucky figure with a wide interval does not win. Rows whose timing cannot be trusted do not compete.
    "Surely within a loss" is corrected for the number of variants that are compared. "Cannot be told from none" is not:
    a correction would let larger losses pass.

    Args:
        rows: of one run; controls among them do not compete.
        folder: of the run, to name the folder of the variant.
    """
    every = rows
    rows = [row for row in rows if row.get("control") is None]
    trusted = [row for row in rows if is_trusted(row)]
    choices = [_choose(trusted, tolerance) for tolerance in (None, *TOLERANCES)]
    best = choices[0].row
    in_doubt = doubtful(every)
    return Verdict(
        sentence=" ".join([_sentence(rows, best, folder), *_elsewhere(trusted, best, folder)]),
        choices=choices,
        chain=judge_chain(rows, best),
        doubt=in_doubt and f"Not counted, for these timings ({MARK}) cannot be trusted: {in_doubt}.",
        command=remedy(folder) if in_doubt and folder is not None else "",
        remarks=_remarks(trusted, choices),
    )


def _sentence(rows: Sequence[Row], best: Row | None, folder: Path | None) -> str:
    if best is None:
        return _without_choice(rows)
    if best["step"] == 0:
        doubt = any(row["caveat"] and row["step"] > 0 for row in rows)
        among = "Among the timings that can be trusted, no technique" if doubt else "No technique"
        return (
            f"{among} pays without a measurable loss. Serve the baseline itself{_home(best, folder)} on "
            f"{describe_setting(best)}: it is {times(best, 'speedup')} as fast as on {best['reference']}."
        )
    text = (
        f"Serve “{called(best)}”{_home(best, folder)} on {describe_setting(best)}: "
        f"it is {times(best, headline_ratio(best))} as fast as {against(best)}"
    )
    if headline_ratio(best) != "speedup":
        text += f", and {times(best, 'speedup')} as fast as the baseline on {best['reference']}, on the processor"
    return f"{text}. {_kept(best)}"


def _kept(row: Row) -> str:
    """That a row has lost nothing that can be measured, or has gained."""
    change, written = difference(row, "quality_delta"), Written.of(row)
    if written.gains(row["quality_delta_ci"])[0] > 0:
        return f"Its {written.name} is better than the baseline's: {change}."
    return f"This test cannot tell its change in {written.name} of {change} from none."


def _elsewhere(trusted: Sequence[Row], best: Row | None, folder: Path | None) -> list[str]:
    """What to serve at other batch sizes and lengths."""
    if best is None:
        return []
    others = sorted({Setting.of(row) for row in trusted} - {Setting.of(best)})
    found = []
    for setting in others[:MOST_SETTINGS]:
        row = _choose([r for r in trusted if Setting.of(r) == setting], None).row
        if row is None:
            found.append(f"At {setting} nothing is measurably faster without a measurable loss.")
            continue
        ratio = times(row, headline_ratio(row))
        if (row["variant"], row["engine"]) == (best["variant"], best["engine"]):
            found.append(f"At {setting} it is {ratio} as fast.")
        elif row["step"] == 0:
            found.append(f"At {setting} the baseline itself is the best, on {row['engine']}: {ratio} as fast.")
        else:
            home = "" if row["variant"] == best["variant"] else _home(row, folder)
            found.append(f"At {setting} serve “{called(row)}”{home} on {row['engine']}: {ratio} as fast.")
    return found


def _remarks(rows: Sequence[Row], choices: Sequence[Choice]) -> list[str]:
    best = choices[0].row
    remarks = []
    more = next((c for c in choices[1:] if c.row is not None and c.row is not best and _beats(c.row, best)), None)
    if more is not None and more.row is not None:
        remarks.append(
            f"For a measured change of {difference(more.row, 'quality_delta')}, “{called(more.row)}” on "
            f"{describe_setting(more.row)} is {times(more.row, headline_ratio(more.row))} as fast."
        )
    if best is not None and best["quality_delta_detectable"]:
        written = Written.of(best)
        remarks.append(
            f"{best['examples']:,} examples show a change of {written.number(best['quality_delta_detectable'])}"
            f"{written.change_unit} or more four times in five; smaller ones can hide."
        )
    hidden = [r for r in rows if _told_alone(r) and _is_faster(r) and _beats(r, best)]
    if hidden:
        row = max(hidden, key=_surely)
        name = Written.of(row).name
        remarks.append(
            f"“{called(row)}” on {describe_setting(row)} is faster and does not count as keeping its {name}: its "
            f" change of {difference(row, 'quality_delta')} shows by itself (p = {row['quality_delta_p']:.3f}), "
            f"though not among {row['quality_compared']} variants (p = {row['quality_delta_p_holm']:.3f})."
        )
    compared = max((row["quality_compared"] or 0 for row in rows), default=0)
    if best is not None and len(rows) > 2:
        corrected = (
            f" Losses called sure are corrected for {compared} variants; speedups are not." if compared > 1 else ""
        )
        remarks.append(
            f"It is the best of {len(rows)} measured rows.{corrected} The best of many looks a little too good."
        )
    return remarks


def _without_choice(rows: Sequence[Row]) -> str:
    """What there is to say of variants none of which is known to be faster and to keep its quality."""
    timed = [row for row in rows if row["speedup"] is not None and row["step"] > 0]
    trusted = [row for row in timed if is_trusted(row)]
    if not timed:
        return "This run holds nothing to compare: no variant was timed beside the baseline."
    if not trusted:
        return "There is no verdict on speed: no timing of a variant can be trusted."
    if any(row["quality_delta_ci"] is not None for row in trusted):
        of = "of the timings that can be trusted " if len(trusted) < len(timed) else ""
        name = Written.of(trusted[0]).name
        return f"Nothing here {of}is measurably faster than the baseline without a measurable loss of {name}."
    fastest = max(trusted, key=_surely)
    return (
        f"No change in {Written.of(fastest).name} is known. Of the baseline on {fastest['reference']} there are no "
        f"answers to the same examples. The fastest, “{called(fastest)}” on {describe_setting(fastest)}, is "
        f"{times(fastest, headline_ratio(fastest))} as fast as {against(fastest)}."
    )


def keeps_quality(row: Row, tolerance: float | None = None) -> bool:
    """Whether the interval of the change of the metric reaches none, or stays within a tolerated loss.

    The loss of a variant after the baseline must stay within it by the corrected test, too.
    """
    ci = row["quality_delta_ci"]
    if ci is None:
        return False
    low, high = Written.of(row).gains(ci)
    if tolerance is None:
        return high >= 0
    return low >= -tolerance * row["tolerance_unit"] and (
        row["step"] == 0 or row["quality_loss_within_p_holm"][str(tolerance)] <= LEVEL
    )


def _told_alone(row: Row) -> bool:
    """Whether a loss shows in its own test, and not in the one that is corrected for the others."""
    alone, corrected = row["quality_delta_p"], row["quality_delta_p_holm"]
    return alone is not None and not keeps_quality(row) and alone <= 2 * LEVEL < corrected


def _choose(trusted: Sequence[Row], tolerance: float | None) -> Choice:
    fit = [row for row in trusted if keeps_quality(row, tolerance) and _is_faster(row)]
    return Choice(tolerance, max(fit, key=_surely, default=None))


def _is_faster(row: Row) -> bool:
    """Whether it is measurably faster than the baseline; a variant on a GPU than the baseline there, too."""
    return _surely(row) > 1 and (row["step"] == 0 or row[f"{headline_ratio(row)}_ci"][0] > 1)


def _surely(row: Row) -> float:
    """The speedup that is surely reached: the lower end of its interval."""
    return Estimate(row["speedup"], *row["speedup_ci"]).low


def _home(row: Row, folder: Path | None) -> str:
    """The folder of a row's variant, in brackets."""
    if folder is None:
        return ""
    return f" ({folder_of(folder, row['step'], row['stage'], row['chain'], row['control'])})"


def _beats(row: Row, other: Row | None) -> bool:
    return other is None or _surely(row) > _surely(other)
