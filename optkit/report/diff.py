"""Two runs compared: what their recipes differ in, and every variant against its namesake."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.core import ledger
from optkit.core.records import Measurement, Record
from optkit.core.setting import Setting
from optkit.report.caveats import MARK, doubtful
from optkit.report.comparable import MACHINE, differences, surroundings
from optkit.report.recipes import flat_recipe
from optkit.report.rows import Row, difference, relative_speedup, rows
from optkit.report.written import ACCURACY, Written

if TYPE_CHECKING:
    from rich.table import Table

Place = tuple[str, str, int, Setting]
NOTE = (
    "Ratios say how many times as fast the second run is; they are of two sessions, not interleaved, so a machine that "
    "drifted between them moves the latency ratio. The ratio of speedups takes each against its own baseline."
)


@dataclass(frozen=True)
class Pair:
    """A variant of the first run and its namesake in the second, on the same engine at the same batch size and threads.

    Attributes:
        written: how the metric is written.
        quality: the metric of both.
        quality_delta: the second's less the first's; its interval and p-value are None where the answers cannot be
            paired.
        latency_ratio: the first's median latency over the second's; None on different machines.
        speedup_ratio: the second's speedup over the first's, each against its own baseline; its interval takes the two
            as independent.
        caveat: why a timing of one of the two cannot be trusted, so that neither ratio is given; None where both can.
    """

    stage: str
    engine: str
    batch_size: int
    threads: int
    sequence_length: int | None
    workload: str | None
    written: Written
    quality: tuple[float, float]
    quality_delta: float
    quality_delta_ci: list[float] | None
    quality_delta_p: float | None
    latency_p50_ms: tuple[float | None, float | None]
    latency_ratio: float | None
    speedup: tuple[float | None, float | None]
    speedup_ratio: float | None
    speedup_ratio_ci: list[float] | None
    size_mb: tuple[float | None, float | None]
    caveat: str | None = None


@dataclass(frozen=True)
class Difference:
    """What `diff_runs` found; rows without a namesake are named in `only_first` and `only_second`."""

    runs: tuple[str, str]
    overrides: list[dict[str, Any]]
    warnings: list[str]
    pairs: list[Pair]
    only_first: list[str]
    only_second: list[str]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def diff_runs(first: Path, second: Path) -> Difference:
    """Compares two run folders.

    Raises:
        UserError: a path that holds no ledger, or several.
    """
    first, second = ledger.one_run(first), ledger.one_run(second)
    records = [ledger.unique(ledger.read(path)) for path in (first, second)]
    recipes = [flat_recipe(path) for path in (first, second)]
    names = [names_of(each) for each in records]
    found = [{_place(row, n): row for row in rows(each)} for each, n in zip(records, names, strict=True)]
    differing = differences([_described(each[-1]) for each in records if each])
    paired, comparable = "data" not in differing, not any(what in differing for what in MACHINE)
    pairs = [
        _pair(place[0], found[0][place], found[1][place], records, paired, comparable=comparable)
        for place in found[0]
        if place in found[1] and "metric" not in differing
    ]
    only = [[_words(place) for place in ours if place not in theirs] for ours, theirs in (found, found[::-1])]
    warnings = [f"{what} differs: {a}; {b}" for what, (a, b) in differing.items()]
    if not comparable:
        warnings.append("latencies of different machines are not compared")
    both = [row for each in found for place, row in each.items() if place in found[0] and place in found[1]]
    if in_doubt := doubtful(both):
        warnings.append(f"timings that cannot be trusted ({MARK}) are not compared: {in_doubt}")
    if not pairs:
        warnings.append("no variant of one has a namesake in the other on the same engine, batch size and threads")
    keys = sorted(set(recipes[0]) | set(recipes[1]))
    overrides = [
        {"key": key, "first": recipes[0].get(key), "second": recipes[1].get(key)}
        for key in keys
        if recipes[0].get(key) != recipes[1].get(key)
    ]
    return Difference((str(first), str(second)), overrides, warnings, pairs, *only)


def names_of(records: Sequence[Record]) -> dict[tuple[str, int], str]:
    """What each variant is called: its stage, and where a run branches, those after the recipe's own by their chain."""
    names: dict[tuple[str, int], str] = {}
    for record in records:
        control = f"{record.control}: " if record.control else ""
        stage = control + (record.stage if record.step > 0 else "baseline")
        taken = stage in names.values()
        names[record.variant, record.step] = control + "+".join(["baseline", *record.chain]) if taken else stage
    return names


def _place(row: Row, names: dict[tuple[str, int], str]) -> Place:
    name = names[row["variant"], row["step"]]
    return name, row["engine"], row["threads"], Setting.of(row)


def _words(place: Place) -> str:
    stage, engine, threads, setting = place
    rest = "".join([f", {n} tokens" for n in setting.length.values()] + [f", {w}" for w in [setting.workload] if w])
    return f"{stage} on {engine}, batch {setting.batch_size}, {threads} threads{rest}"


def _described(record: Record) -> dict[str, str]:
    """What should be the same for two runs, as far as it is known."""
    packages = record.environment.get("packages", {})
    found = {name: packages.get(name) for name in ("optkit", "torchao")}
    found["metric"] = record.primary[0].name if record.primary else None
    found["data"] = str(record.data.get("fingerprint", "unknown"))[:12]
    return surroundings(record) | {what: value for what, value in found.items() if value is not None}


def _pair(stage: str, a: Row, b: Row, records: Sequence[Sequence[Record]], paired: bool, *, comparable: bool) -> Pair:
    answers = [_answers(of, row) for of, row in zip(records, (a, b), strict=True)]
    delta, ci, p_value = b["quality"] - a["quality"], None, None
    if paired and a["split"] == b["split"] and answers[0].n == answers[1].n:
        test = difference(answers[1], answers[0])
        delta, ci, p_value = test.delta.value, test.delta.ci, test.p_value
    caveat = a["caveat"] or b["caveat"]
    comparable = comparable and caveat is None
    both = comparable and a["latency_p50_ms"] is not None and b["latency_p50_ms"] is not None
    timed = comparable and a["speedup"] is not None and b["speedup"] is not None
    ratio = relative_speedup(b, a) if timed else None
    return Pair(
        stage=stage, engine=a["engine"], batch_size=a["batch_size"], threads=a["threads"],
        sequence_length=a.get("sequence_length"), workload=a.get("workload"), written=Written.of(a),
        quality=(a["quality"], b["quality"]), quality_delta=delta,
        quality_delta_ci=ci, quality_delta_p=p_value, latency_p50_ms=(a["latency_p50_ms"], b["latency_p50_ms"]),
        latency_ratio=a["latency_p50_ms"] / b["latency_p50_ms"] if both else None, speedup=(a["speedup"], b["speedup"]),
        speedup_ratio=ratio.value if ratio else None, speedup_ratio_ci=ratio.ci if ratio else None,
        size_mb=(a["size_mb"], b["size_mb"]), caveat=caveat,
    )  # fmt: skip


def _answers(records: Sequence[Record], row: Row) -> Measurement:
    wanted = {"engine": row["engine"], "threads": row["threads"], **Setting.of(row).conditions}
    return next(
        m
        for record in records
        if (record.variant, record.step) == (row["variant"], row["step"])
        for m in record.measurements
        if m.quality and m.quality.primary and m.holds(**wanted)
    )


def table(compared: Difference, width: int) -> Table:
    """The pairs as a rich table."""
    from optkit.report.tables import Column, fitted

    written = compared.pairs[0].written if compared.pairs else ACCURACY
    columns: list[Column] = [
        ("stage", lambda p: p.stage, 0),
        ("engine", lambda p: p.engine, 0),
        ("batch", lambda p: str(p.batch_size), 0),
        ("tokens", lambda p: str(p.sequence_length or "-"), 60),
        ("workload", lambda p: p.workload or "-", 0),
        (written.title, lambda p: " > ".join(map(p.written.number, p.quality)), 90),
        (written.change_title, _change, 60),
        ("latency ratio", lambda p: _untimed(p) if p.latency_ratio is None else f"{p.latency_ratio:.2f}", 80),
        ("ratio of speedups", _ratio_of_speedups, 0),
    ]
    of_texts = any(pair.sequence_length for pair in compared.pairs)
    generates = any(pair.workload for pair in compared.pairs)
    left_out = {*(() if of_texts else ("tokens",)), *(() if generates else ("workload",))}
    return fitted([c for c in columns if c[0] not in left_out], compared.pairs, width, NOTE)


def _change(pair: Pair) -> str:
    return " ".join(
        filter(None, (pair.written.signed(pair.quality_delta), pair.written.signed_bounds(pair.quality_delta_ci)))
    )


def _ratio_of_speedups(pair: Pair) -> str:
    if pair.speedup_ratio is None:
        return _untimed(pair)
    return f"{pair.speedup_ratio:.2f}" + _bounds(pair.speedup_ratio_ci, ".2f")


def _untimed(pair: Pair) -> str:
    return f"-{MARK}" if pair.caveat else "-"


def _bounds(ci: Sequence[float] | None, spec: str) -> str:
    return "" if ci is None else f" [{ci[0]:{spec}}, {ci[1]:{spec}}]"


def print_diff(compared: Difference) -> None:
    """Overrides, warnings and the table on standard output."""
    from rich.console import Console

    from optkit.report.tables import terminal_width

    width = terminal_width()
    console = Console(highlight=False, markup=False, soft_wrap=True, width=width)
    for place, run in zip(("first", "second"), compared.runs, strict=True):
        console.print(f"{place}: {run}")
    for override in compared.overrides:
        console.print(f"  {override['key']}: {override['first']} > {override['second']}")
    for warning in compared.warnings:
        console.print(f"warning: {warning}")
    if compared.pairs:
        console.print(table(compared, width), soft_wrap=False)
    for run, only in zip(compared.runs, (compared.only_first, compared.only_second), strict=True):
        if only:
            console.print(f"only in {run}: {'; '.join(only)}")
