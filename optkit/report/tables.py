"""Tables for terminals and Markdown."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from optkit.core.setting import Setting
from optkit.report.batch_sizes import HEADERS, WORDS, limit_cells, limit_title
from optkit.report.caveats import MARK, footnote, mark, variant_name
from optkit.report.controls import against_controls
from optkit.report.rows import Row
from optkit.report.sweep import short_names, shown
from optkit.report.written import Written, common

# header, cell of a row (or whatever else the table has a line for), narrowest console that shows it
Column = tuple[str, Callable[[Any], str], int]
WIDE = 400  # columns where there is no terminal: a file holds every column


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _interval(row: Row, name: str, show: Callable[[float], str]) -> str:
    ci = row[f"{name}_ci"]
    return "" if ci is None else f" [{show(ci[0])}, {show(ci[1])}]"


def _quality(row: Row) -> str:
    written = Written.of(row)
    return f"{written.number(row['quality'])} {written.bounds(row['quality_ci'])}".rstrip()


def _delta(row: Row) -> str:
    if row["quality_delta"] is None:
        return "-"
    written = Written.of(row)
    return f"{written.signed(row['quality_delta'])} {written.signed_bounds(row['quality_delta_ci'])}".rstrip()


def _deviation(row: Row, name: str) -> str:
    return "-" if row[f"{name}_sd"] is None else Written.of(row).number(row[f"{name}_sd"])


def _times(name: str) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        if row[name] is None:
            return "-"
        return f"{row[name]:.2f}{mark(row)}" + _interval(row, name, lambda v: f"{v:.2f}")

    return show


def _p50(row: Row) -> str:
    return "-" if row["latency_p50_ms"] is None else f"{row['latency_p50_ms']:,.2f}{mark(row)}"


def _number(name: str, digits: int, scale: float = 1.0) -> Callable[[Row], str]:
    return lambda row: "-" if row[name] is None else f"{row[name] * scale:,.{digits}f}"


def _optional(name: str, digits: int) -> Callable[[Row], str]:
    return lambda row: "-" if row.get(name) is None else f"{row[name]:,.{digits}f}"


def _tokens_a_second(row: Row) -> str:
    if not row.get("workload") or row["throughput"] is None:
        return "-"
    return f"{row['throughput']:,.{1 if row['throughput'] < 1000 else 0}f}{mark(row)}"


QUALITY, CHANGE = "quality", "change"  # columns that are called after the rows' metric
WORKLOAD, TOKENS_A_SECOND = "workload", "tokens/s"
GENERATION = (WORKLOAD, TOKENS_A_SECOND, "weights MB", "cache MB", "bandwidth %", "bound")
COLUMNS: tuple[Column, ...] = (
    ("stage", variant_name, 0),
    ("engine", lambda r: str(r["engine"]), 0),
    ("batch", lambda r: str(r["batch_size"]), 0),
    ("tokens", lambda r: str(r.get("sequence_length") or "-"), 100),
    (WORKLOAD, lambda r: r.get("workload") or "-", 0),
    (QUALITY, _quality, 0),
    (CHANGE, _delta, 100),
    ("p50 ms", _p50, 0),
    (TOKENS_A_SECOND, _tokens_a_second, 0),
    ("speedup", _times("speedup"), 0),
    ("same engine", _times("speedup_same_engine"), 148),
    ("size MB", _number("size_mb", 2), 118),
    ("MACs M", _number("macs", 1, 1e-6), 118),
    ("int8 %", lambda r: _percent(r["int8_share"]), 165),
    ("2:4 %", lambda r: _percent(r.get("sparse_share")), 165),
    ("peak MB", _number("peak_memory_mb", 0), 165),
    ("weights MB", _optional("weights_mb", 1), 165),
    ("cache MB", _optional("cache_mb", 2), 165),
    ("bandwidth %", lambda r: _percent(r.get("bandwidth_share")), 165),
    ("bound", lambda r: r["bound"] or "-", 165),
    ("tokenize ms", _number("tokenize_ms", 3), 165),
    ("stage s", _number("stage_cost_s", 1), 128),
)
# what a run shows in the end: the columns that decide what to serve
BRIEF: tuple[Column, ...] = (
    ("stage", variant_name, 0),
    ("engine", lambda r: str(r["engine"]), 0),
    ("batch", lambda r: str(r["batch_size"]), 0),
    ("tokens", lambda r: str(r.get("sequence_length") or "-"), 50),
    (WORKLOAD, lambda r: r.get("workload") or "-", 0),
    (QUALITY, lambda r: Written.of(r).number(r["quality"]), 50),
    (CHANGE, _delta, 90),
    ("p50 ms", _p50, 60),
    (TOKENS_A_SECOND, _tokens_a_second, 80),
    ("speedup", lambda r: f"{r['speedup']:.2f}{MARK}" if r["caveat"] and r["speedup"] else _times("speedup")(r), 0),
    ("size MB", _number("size_mb", 2), 70),
)
BRIEF_WIDTH = 100
# means over several runs
MEANS: tuple[Column, ...] = (
    ("stage", variant_name, 0),
    ("engine", lambda r: str(r["engine"]), 0),
    ("batch", lambda r: str(r["batch_size"]), 0),
    ("tokens", lambda r: str(r.get("sequence_length") or "-"), 100),
    (WORKLOAD, lambda r: r.get("workload") or "-", 0),
    ("runs", lambda r: str(r["runs"]), 0),
    (QUALITY, _quality, 0),
    ("sd", lambda r: _deviation(r, "quality"), 0),
    (CHANGE, _delta, 100),
    ("sd of change", lambda r: _deviation(r, "quality_delta"), 118),
    ("p50 ms", _p50, 60),
    ("speedup", _times("speedup"), 0),
    ("sd of speedup", lambda r: "-" if r["speedup_sd"] is None else f"{r['speedup_sd']:.2f}", 118),
    ("same engine", _times("speedup_same_engine"), 148),
    ("size MB", _number("size_mb", 2), 118),
)
NOTE = (
    "Speedup and change are against the baseline (step 0) on PyTorch eager in fp32 at the same batch size, timed in "
    "the same rounds; brackets are 95% intervals."
)


GAP = 2
NARROWEST_NAME = 16


def _columns(rows: Sequence[Row]) -> list[Column]:
    """The columns that these rows have: tokens an example are a matter of texts, 2:4 kernels of GPUs, and so on."""
    of_texts = any(row.get("sequence_length") for row in rows)
    on_gpu = any(row.get("sparse_share") is not None for row in rows)
    left_out = {
        *(() if of_texts else ("tokens", "tokenize ms")),
        *(() if on_gpu else ("2:4 %",)),
        *(() if _generate(rows) else GENERATION),
    }
    every = MEANS if any("over" in row for row in rows) else COLUMNS
    return _with_settings(_named([c for c in every if c[0] not in left_out], rows), rows)


def _generate(rows: Sequence[Row]) -> bool:
    return any(row.get("workload") for row in rows)


def _with_settings(columns: Sequence[Column], rows: Sequence[Row]) -> list[Column]:
    """The columns, and behind the first one for each key in which the runs differ; or the runs' names."""
    keys = list(dict.fromkeys(key for row in rows for key in row.get("settings", {})))
    if not keys and len({row.get("run") for row in rows}) > 1:
        return [columns[0], ("run", lambda row: str(row["run"]), 0), *columns[1:]]
    return [columns[0], *((name, _setting(key), 0) for key, name in short_names(keys).items()), *columns[1:]]


def _setting(key: str) -> Callable[[Row], str]:
    return lambda row: shown(row["settings"].get(key))


def _named(columns: Sequence[Column], rows: Sequence[Row]) -> list[Column]:
    """The columns with the name of the rows' metric; rows of several metrics say in each cell which it is."""
    written = common(rows)
    if written is not None:
        names = {QUALITY: written.title, CHANGE: written.change_title}
        return [(names.get(header, header), cell, width) for header, cell, width in columns]
    return [(header, _with_title(cell) if header == QUALITY else cell, width) for header, cell, width in columns]


def _with_title(cell: Callable[[Row], str]) -> Callable[[Row], str]:
    return lambda row: f"{Written.of(row).title}: {cell(row)}"


def terminal_width() -> int:
    """Columns of the terminal; `WIDE` where there is none."""
    return shutil.get_terminal_size((WIDE, 24)).columns


def _note(rows: Sequence[Row]) -> str:
    over = next((row["over"] for row in rows if "over" in row), None)
    if over is None:
        return NOTE
    return (
        f"{NOTE[: NOTE.index(';')]}. These are means over the runs that differ in {over} only; brackets are 95% "
        "intervals over runs and test examples, sd is the standard deviation over runs. Timings that cannot be trusted "
        "are left out."
    )


def table(rows: Sequence[Row], width: int, brief: bool = False) -> Table:
    """A rich table of rows; ``brief`` shows only the columns for choosing a variant."""
    settings = list(map(Setting.of, rows))
    ends = [place for place in range(1, len(rows)) if settings[place] != settings[place - 1]]
    left_out = {
        *(() if len({s.sequence_length for s in settings}) > 1 else ("tokens",)),
        *(() if _generate(rows) else GENERATION),
    }
    columns = _named([c for c in BRIEF if c[0] not in left_out], rows)
    if brief:
        marked = f"\n{MARK} This timing cannot be trusted." if footnote(rows) else ""
        return fitted(columns, rows, width, NOTE + marked, ends)
    return fitted(_columns(rows), rows, width, "\n".join(filter(None, (_note(rows), footnote(rows)))), ends)


def fitted(columns: Sequence[Column], rows: Sequence[Any], width: int, note: str, ends: Sequence[int] = ()) -> Table:
    """A rich table. A narrow console or long names lead to fewer columns, never to broken ones.

    Args:
        columns: the first holds names.
        rows: one a line.
        width: of the console.
        note: beneath it.
        ends: numbers of the rows that begin a new part.
    """
    shown = [c for c in columns if c[2] <= width]
    while len(shown) > 1 and _width(rows, shown) > width and max(c[2] for c in shown) > 0:
        least = max(c[2] for c in shown)
        shown.remove([c for c in shown if c[2] == least][-1])
    fits = _width(rows, shown) <= width
    # where all but the names fit, only they are folded
    rest_fits = _width(rows, shown[1:]) + NARROWEST_NAME + GAP <= width
    result = Table(box=None, header_style="bold", pad_edge=False, caption=note, caption_justify="left")
    for place, (header, _, _) in enumerate(shown):
        whole = fits or (rest_fits and place > 0)
        is_name = header in ("stage", "engine")
        result.add_column(header, justify="left" if is_name else "right", no_wrap=whole, overflow="fold")
    for place, row in enumerate(rows):
        last = place + 1 == len(rows) or place + 1 in ends
        result.add_row(*(Text(cell(row)) for _, cell, _ in shown), end_section=last)
    return result


def _width(rows: Sequence[Any], columns: Sequence[Column]) -> int:
    """Characters that a table takes whose cells stay whole."""
    widths = [max(cell_len(text) for text in (header, *map(cell, rows))) for header, cell, _ in columns]
    return sum(widths) + GAP * (len(widths) - 1)


def markdown(rows: Sequence[Row]) -> str:
    """A GitHub Markdown table with every column."""
    columns = _columns(rows)
    lines = [
        "| " + " | ".join(header for header, _, _ in columns) + " |",
        "|" + "|".join("---" if header in ("stage", "engine") else "---:" for header, _, _ in columns) + "|",
    ]
    lines += [_line([cell(row) for _, cell, _ in columns]) for row in rows]
    if any("over" in row for row in rows):
        return "\n".join(lines) + f"\n\n{_note(rows)}\n"
    compared = "".join(f"\n- {line}" for line in against_controls(rows))
    controls = f"\nAgainst the controls:\n{compared}\n" if compared else ""
    marked = f"\n{found}\n" if (found := footnote(rows)) else ""
    return "\n".join(lines) + f"\n\n{_note(rows)}\n" + marked + _limit_markdown(rows) + controls


def _line(texts: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def limit_table(rows: Sequence[Row], width: int) -> Table | None:
    """The largest batch within the limit of p99 as a rich table; None where no limit is stated."""
    lines = limit_cells(rows)
    if not lines:
        return None
    result = Table(box=None, header_style="bold", pad_edge=False, title=limit_title(rows), title_justify="left")
    for place, header in enumerate(HEADERS):
        words = place in WORDS
        result.add_column(
            header, justify="left" if words else "right", no_wrap=width >= 80 and not words, overflow="fold"
        )
    for line in lines:
        result.add_row(*map(Text, line))
    return result


def _limit_markdown(rows: Sequence[Row]) -> str:
    lines = limit_cells(rows)
    if not lines:
        return ""
    marks = "|".join("---" if place in WORDS else "---:" for place in range(len(HEADERS)))
    found = [_line(HEADERS), f"|{marks}|", *map(_line, lines)]
    return f"\n{limit_title(rows)}\n\n" + "\n".join(found) + "\n"


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headers and cells of every column, as text."""
    columns = _columns(rows)
    return [header for header, _, _ in columns], [[cell(row) for _, cell, _ in columns] for row in rows]


def print_pairs(headers: tuple[str, str], pairs: Mapping[str, str]) -> None:
    """Two columns on standard output."""
    result = Table(box=None, header_style="bold", pad_edge=False)
    for header in headers:
        result.add_column(header)
    for name, text in pairs.items():
        result.add_row(name, text)
    Console().print(result)


def print_stages(catalogue: Mapping[str, Mapping[str, Any]]) -> None:
    """Every stage with its parameters and their defaults."""
    console = Console(highlight=False, markup=False)
    for name, stage in catalogue.items():
        console.print(f"stage@stages.NAME={name}", style="bold")
        console.print(f"  {stage['summary']}")
        for parameter, default in stage["parameters"].items():
            shown = "null" if default is None else default
            console.print(f"  {parameter} = {shown}", style="dim")
        console.print()
