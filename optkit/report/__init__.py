"""Reports, computed from ledgers alone."""

from __future__ import annotations

import json
import logging
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from optkit.core import ledger
from optkit.core.cache import write_text
from optkit.core.errors import UserError
from optkit.core.extras import missing, need
from optkit.report.batch_sizes import add_limits
from optkit.report.comparable import cautions
from optkit.report.controls import against_controls
from optkit.report.rows import Row, rows
from optkit.report.search import read_search, search_markdown, search_text
from optkit.report.sweep import SweptRun, open_sweep
from optkit.report.sweep import over as means_over
from optkit.report.unmeasured import not_measured

if TYPE_CHECKING:
    import pandas

log = logging.getLogger(__name__)
__all__ = ["Row", "frame", "read_rows", "remedies", "render", "rows", "save_report", "summarize", "write_report"]


def read_rows(runs: Sequence[str | Path]) -> list[Row]:
    """The rows of one or more run folders, or folders of these; what does not compare among them is warned of.

    ``settings`` of a row holds the keys in which the recipes of these runs differ, with the values of its run.
    """
    return _rows_of(open_sweep(runs))


def _rows_of(sweep: Sequence[SweptRun]) -> list[Row]:
    records = ledger.unique(record for run in sweep for record in run.records)
    for caution in cautions(records):
        log.warning("%s", caution)
    settings = {record.run: dict(run.settings) for run in sweep for record in run.records}
    return [row | {"settings": settings[row["run"]]} for row in rows(records)]


def frame(runs: Sequence[str | Path], over: str | None = None) -> pandas.DataFrame:
    """The rows of runs as a data frame, a column for each key, and for each key in which the recipes differ.

    Args:
        runs: run folders, folders of these, or ledger files.
        over: a key in which the runs differ, such as ``seed``; means over it are given then, see `optkit.report.sweep`.

    Raises:
        UserError: a path holds no ledger, or the runs do not differ in ``over``.
    """
    import pandas

    from optkit.report.csv_table import flat_rows

    return pandas.DataFrame(flat_rows(_read(runs, over)))


def _read(runs: Sequence[str | Path], over: str | None) -> list[Row]:
    sweep = open_sweep(runs)
    found = _rows_of(sweep)
    return found if over is None else means_over(sweep, over)


def render(
    runs: Sequence[Path], format_: str, p99_limit: float | None = None, wide: bool = False, over: str | None = None
) -> str:
    """A report of run folders as ``table``, ``md``, ``csv``, ``json``, ``latex`` or ``html``.

    Args:
        runs: run folders, folders of these, or ledger files. Of a finished search, its front; ``table`` and ``md`` tell
            of the search first.
        format_: one of the six.
        p99_limit: of the 99th percentile of latency, ms; None takes the one that each run was made with.
        wide: show every column of the table, however narrow the terminal is.
        over: a key in which the runs differ, over which means are taken.

    Raises:
        UserError: a path holds no ledger, or the runs do not differ in ``over``; a page of means.
    """
    if format_ == "html" and over is not None:
        raise UserError("the page shows runs, not means over them", key="--over", fix="use another --format")
    if format_ == "html":
        need("report", "page", key="--format")
        from optkit.report.page import render_page

        return render_page(runs, p99_limit)
    searches = [search for run in runs if (search := read_search(run)) is not None]
    told = []
    if searches and format_ in ("md", "table"):
        from optkit.report.tables import terminal_width

        width = terminal_width()
        told = [search_markdown(s) if format_ == "md" else search_text(s, width) for s in searches]
    if told and not any(search["front"] for search in searches):
        return "\n".join(told)
    found = _read(runs, over)
    if p99_limit is not None and over is None:
        add_limits(found, p99_limit)
    if format_ == "json":
        return json.dumps(found, indent=1) + "\n"
    if format_ == "csv":
        from optkit.report.csv_table import csv_table

        return csv_table(found)
    if format_ == "latex":
        from optkit.report.latex_table import latex_table

        return latex_table(found)
    from optkit.report.tables import WIDE, markdown, terminal_width

    shown = markdown(found) if format_ == "md" else _terminal(found, WIDE if wide else terminal_width())
    return "\n".join([*told, shown])


def remedies(runs: Sequence[Path]) -> list[str]:
    """The commands that time marked rows again, one for each run that has some."""
    from optkit.report.caveats import doubtful, remedy

    return [remedy(run) for run in runs if doubtful(rows(ledger.read(run)))]


def summarize(folder: Path) -> str:
    """What a run says in the end: the figures that decide what to serve, and the verdict on them.

    It fits 100 columns, and a narrower terminal.
    """
    from optkit.report.page.verdict import verdict
    from optkit.report.tables import BRIEF_WIDTH, terminal_width

    waiting = not_measured(folder)
    if waiting and not (folder / ledger.LEDGER_NAME).is_file():
        return f"run folder: {folder}\n{waiting}\n"
    found = read_rows([folder])
    width = min(terminal_width(), BRIEF_WIDTH)
    head = f"run folder: {folder}\nevery column: optkit report {shlex.quote(str(folder))} --wide\n"
    judged = verdict(found, folder)
    said = [textwrap.fill(line, width, break_on_hyphens=False, break_long_words=False) for line in judged.lines]
    again = [f"Time them again: {judged.command}"] if judged.command else []
    return "\n".join([_terminal(found, width, brief=True), head, *said, *again, ""])


def _terminal(found: Sequence[Row], width: int, brief: bool = False) -> str:
    import io
    import sys

    from rich.console import Console

    from optkit.report.tables import limit_table, table

    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=sys.stdout.isatty(), force_jupyter=False)
    console.print(table(found, width, brief))
    if any("over" in row for row in found):
        return text.getvalue()
    if (limits := limit_table(found, width)) is not None:
        console.print()
        console.print(limits)
    if compared := against_controls(found):
        console.print("\nAgainst the controls:")
        for line in compared:
            console.print(f"- {line}", highlight=False, markup=False)
    return text.getvalue()


def save_report(
    runs: Sequence[Path],
    format_: str,
    output: Path | None = None,
    p99_limit: float | None = None,
    wide: bool = False,
    over: str | None = None,
) -> Path:
    """Writes a report to a file, by default ``report.FORMAT`` in the first run's folder; returns the file.

    Raises:
        UserError: a run without a ledger, or a file that cannot be written.
    """
    text = render(runs, format_, p99_limit, wide, over)
    first = runs[0] if runs[0].is_dir() else runs[0].parent
    file = output or first / f"report.{format_}"
    if not file.parent.is_dir():
        raise UserError(
            f"cannot write {file}: no such folder", key="--output", fix="give a file in a folder that exists"
        )
    write_text(file, text, key="--output")
    return file


def write_report(folder: Path) -> None:
    """Writes ``report.md`` and ``report.json`` into a run folder, and a model card for every variant.

    Where nothing is measured yet, ``report.md`` says so, and there is nothing else.

    With the extra ``report`` it draws pictures as well: ``tradeoff.svg``, ``tradeoff.png``, and
    ``sensitivity-VARIANT.svg`` for each stage of the recipe that measured sensitivities. Those of a control rank at
    random and are left out. Without the extra a line in the log says that there are no pictures.
    """
    from optkit.report.card import write_cards
    from optkit.report.tables import markdown

    waiting = not_measured(folder)
    if waiting and not (folder / ledger.LEDGER_NAME).is_file():
        write_text(folder / "report.md", f"{waiting}\n")
        return
    found = read_rows([folder])
    write_text(folder / "report.md", markdown(found) + (f"\n{waiting}\n" if waiting else ""))
    write_text(folder / "report.json", json.dumps(found, indent=1) + "\n")
    write_cards(folder)
    if reason := missing("report"):
        log.info("no pictures: %s", reason)
    else:
        _draw(folder, found)


def _draw(folder: Path, found: Sequence[Row]) -> None:
    """Writes the pictures of a run."""
    from optkit.core.records import variant_folder
    from optkit.prune import Sensitivity
    from optkit.report.heatmap import save_heatmap
    from optkit.report.plot import save_tradeoff

    for name in ("tradeoff.svg", "tradeoff.png"):
        save_tradeoff(found, folder / name)
    for record in ledger.read(folder):
        if "sensitivity" in record.facts and record.control is None:
            table = Sensitivity.from_dict(record.facts["sensitivity"])
            save_heatmap(table, folder / f"sensitivity-{variant_folder(folder, record).name}.svg")
