"""A run and its reproduction, compared record by record: each answer, each cost, and what has changed between them."""

from __future__ import annotations

import filecmp
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optkit.core.artifact import WEIGHTS
from optkit.core.environment import same_timing
from optkit.core.ledger import read, unique
from optkit.core.manifest import Change
from optkit.core.records import ANSWERS, Measurement, Record, unpack_values, variant_folder
from optkit.core.setting import Setting
from optkit.report.diff import names_of
from optkit.report.rows import Row, is_trusted, rows

EQUAL, DIFFERS, NOT_COMPARED = "equal", "differs", "not compared"
PER_EXAMPLE, EXACT, CLOSE, INTERVALS, BITS = "per example", "exact", "within 1%", "intervals", "bit by bit"
# costs that follow from the variant alone, and those that hold files with dates and versions
COUNTED = (
    "params", "nonzeros", "sparsity", "macs", "numbers_moved_modelled", "int8_share", "sparse_share", "bytes_in",
    "bytes_out",
)  # fmt: skip
SIZES = ("size", "weights", "cache")
TOLERANCE = 0.01
NOT_AGAIN = "not measured again"
PLACE = ("engine", "batch_size", "sequence_length", "workload", "per", "split")
LATENCY, SPEEDUP = "latency", "speedup"
ELSEWHERE = "another machine, other threads or other versions of the engines"
DRIFTS = "the machine may have drifted between the two runs"


@dataclass(frozen=True)
class Compared:
    """One figure of one variant in both runs.

    Attributes:
        variant: its stage, ``baseline`` for the baseline.
        what: the metric or the cost.
        engine: None for what holds on any.
        setting: batch size, length and workload in words; None for what holds in any.
        how: `PER_EXAMPLE`, `EXACT`, `CLOSE`, `INTERVALS` or `BITS`.
        first: the run's figure, with `first_ci`, its interval.
        second: the reproduction's.
        verdict: `EQUAL`, `DIFFERS` or `NOT_COMPARED`.
        note: how many examples differ, or why it is not compared.
        decides: whether a difference makes the reproduction differ. Speedups do, as they are taken within one run.
            Latencies do not, for a machine drifts between two runs, and weights do not where all answers are equal.
    """

    variant: str
    what: str
    engine: str | None
    setting: str | None
    how: str
    first: float | None
    second: float | None
    verdict: str
    note: str = ""
    first_ci: Sequence[float] | None = None
    second_ci: Sequence[float] | None = None
    decides: bool = True


@dataclass(frozen=True)
class Comparison:
    """What `compare_runs` found.

    Attributes:
        compared: all figures that both runs could have.
        only_first: variants that the reproduction has not.
        only_second: variants that the run has not.
        changes: what differs in what the two follow from.
    """

    compared: list[Compared]
    only_first: list[str]
    only_second: list[str]
    changes: list[Change]

    @property
    def differing(self) -> list[Compared]:
        return [one for one in self.compared if one.verdict == DIFFERS]

    @property
    def missing(self) -> list[Compared]:
        """Answers of the run that the reproduction has not."""
        return [one for one in self.compared if one.how == PER_EXAMPLE and one.note == NOT_AGAIN]

    @property
    def equal(self) -> bool:
        """Whether all variants and answers are there, answers were compared, and nothing that decides differs."""
        answers = [one for one in self.compared if one.how == PER_EXAMPLE and one.verdict == EQUAL]
        decided = [one for one in self.differing if one.decides]
        return bool(answers) and not (decided or self.missing or self.only_first or self.only_second)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"equal": self.equal, **asdict(self)}


def compare_runs(first: Path, second: Path, changes: list[Change]) -> Comparison:
    """Compares the records of a run with those of its reproduction, each variant with its namesake.

    Args:
        first: the run's folder.
        second: the reproduction's.
        changes: what differs in what the two follow from.

    Raises:
        UserError: a folder without a ledger.
    """
    both = [unique(read(folder)) for folder in (first, second)]
    named = [_named(records) for records in both]
    speeds = [_rows(records) for records in both]
    other_machine = any(change.kind == "machine" and change.what == "machine" for change in changes)
    compared: list[Compared] = []
    for name in named[0]:
        if name in named[1]:
            a, b = named[0][name], named[1][name]
            compared.append(_weights(name, variant_folder(first, a), variant_folder(second, b)))
            alike = same_timing(a.environment, b.environment)
            compared += _measured(name, a, b, timed=alike and not other_machine)
            compared += _speedups(name, speeds[0].get(name, {}), speeds[1].get(name, {}), alike)
    only_first, only_second = ([name for name in ours if name not in theirs] for ours, theirs in (named, named[::-1]))
    return Comparison(compared, only_first, only_second, changes)


def _weights(name: str, first: Path, second: Path) -> Compared:
    """The files of a variant's weights; a run's folder may have been copied without them."""
    ours, theirs = first / WEIGHTS, second / WEIGHTS
    if not (ours.is_file() and theirs.is_file()):
        return Compared(name, "weights", None, None, BITS, None, None, NOT_COMPARED, "not in the folder", decides=False)
    same = filecmp.cmp(ours, theirs, shallow=False)
    return Compared(name, "weights", None, None, BITS, None, None, EQUAL if same else DIFFERS, decides=False)


def _named(records: Sequence[Record]) -> dict[str, Record]:
    names = names_of(records)
    return {names[record.variant, record.step]: record for record in records}


def _rows(records: Sequence[Record]) -> dict[str, dict[tuple[str, Setting], Row]]:
    """The rows of a report by variant, then by engine and setting."""
    names = names_of(records)
    found: dict[str, dict[tuple[str, Setting], Row]] = {}
    for row in rows(records):
        found.setdefault(names[row["variant"], row["step"]], {})[row["engine"], Setting.of(row)] = row
    return found


def _measured(name: str, a: Record, b: Record, timed: bool) -> Iterator[Compared]:
    theirs = {_place(m): m for m in b.measurements}
    for one in a.measurements:
        how = _how(one)
        if how is None:
            continue
        other = theirs.get(_place(one))
        setting = str(Setting.of(one.conditions)) if "batch_size" in one.conditions else None
        per = f" a {one.conditions['per']}" if "per" in one.conditions else ""
        verdict, note = _verdict(how, one, other, timed)
        yield Compared(
            name, one.name + per, one.conditions.get("engine"), setting, how, one.value, other.value if other else None,
            verdict, note, one.ci, other.ci if other else None, decides=how != INTERVALS,
        )  # fmt: skip


def _how(one: Measurement) -> str | None:
    """How a measurement is compared; None for what is not: it has no interval, or stands for another figure."""
    if one.quality is not None or one.name == ANSWERS:
        return PER_EXAMPLE
    if one.name in COUNTED:
        return EXACT
    if one.name in SIZES:
        return CLOSE
    return INTERVALS if one.name == LATENCY and one.conditions.get("of") == "variant" else None


def _place(one: Measurement) -> tuple[Any, ...]:
    return (one.name, one.conditions.get("of"), *(one.conditions.get(key) for key in PLACE))


def _verdict(how: str, one: Measurement, other: Measurement | None, timed: bool) -> tuple[str, str]:
    if other is None:
        return NOT_COMPARED, NOT_AGAIN
    if how == PER_EXAMPLE:
        return _answers(one, other)
    if one.value is None or other.value is None:
        return (EQUAL, "") if one.value == other.value else (NOT_COMPARED, "no figure")
    if how == EXACT:
        return (EQUAL if one.value == other.value else DIFFERS), ""
    if how == CLOSE:
        return (EQUAL if abs(one.value - other.value) <= TOLERANCE * abs(one.value) else DIFFERS), ""
    if not timed:
        return NOT_COMPARED, ELSEWHERE
    if any(m.conditions.get("disturbed") for m in (one, other)):
        return NOT_COMPARED, "a timing that cannot be trusted"
    return _overlap(one.ci, other.ci, DRIFTS)


def _answers(one: Measurement, other: Measurement) -> tuple[str, str]:
    """Whether each example adds the same to the metric."""
    if one.raw is None or other.raw is None:
        return (EQUAL if one.value == other.value else DIFFERS), "answers per example are not kept"
    ours, theirs = (unpack_values(m.raw) for m in (one, other))
    if ours.shape != theirs.shape:
        return DIFFERS, f"{len(ours)} examples, now {len(theirs)}"
    differing = int((ours != theirs).sum())
    if not differing:
        return EQUAL, f"{len(ours)} examples"
    note = f"{differing} of {len(ours)} examples"
    if ours.dtype != np.bool_ or theirs.dtype != np.bool_:
        most = float(np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max())
        note += f", by {most:.2g} at most" if one.quality is not None else ""
    return DIFFERS, note


def _speedups(
    name: str, ours: Mapping[tuple[str, Setting], Row], theirs: Mapping[tuple[str, Setting], Row], alike: bool
) -> Iterator[Compared]:
    """Each variant's speedup over the baseline of its own run, which a drift between the two runs does not move."""
    for place, row in ours.items():
        other = theirs.get(place)
        if row["speedup"] is None or (name == "baseline" and row["engine"] == row["reference"]):
            continue
        if other is None or other["speedup"] is None:
            verdict, note = NOT_COMPARED, NOT_AGAIN
        elif not (is_trusted(row) and is_trusted(other)):
            verdict, note = NOT_COMPARED, "a timing that cannot be trusted"
        elif not alike:
            verdict, note = NOT_COMPARED, ELSEWHERE
        else:
            verdict, note = _overlap(row["speedup_ci"], other["speedup_ci"], "")
        yield Compared(
            name, SPEEDUP, place[0], str(place[1]), INTERVALS, row["speedup"], (other or {}).get("speedup"), verdict,
            note, row["speedup_ci"], (other or {}).get("speedup_ci"),
        )  # fmt: skip


def _overlap(one: Sequence[float] | None, other: Sequence[float] | None, note: str) -> tuple[str, str]:
    if one is None or other is None:
        return NOT_COMPARED, "no interval"
    return (EQUAL, "") if one[0] <= other[1] and other[0] <= one[1] else (DIFFERS, note)
