"""Reports, computed from ledgers alone."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from optkit.core import ledger
from optkit.core.cache import write_text
from optkit.core.errors import UserError
from optkit.report.comparable import cautions
from optkit.report.controls import against_controls
from optkit.report.rows import Row, rows
from optkit.report.sweep import add_limits

log = logging.getLogger(__name__)
__all__ = ["Row", "read_rows", "render", "rows", "save_report", "write_report"]


def read_rows(runs: Sequence[str | Path]) -> list[Row]:
    """The rows of one or more run folders; what does not compare among them is warned of."""
    records = ledger.read(*runs)
    for caution in cautions(records):
        log.warning("%s", caution)
    return rows(records)


def render(runs: Sequence[Path], format_: str, p99_limit: float | None = None) -> str:
    """A report of run folders as ``table``, ``md``, ``json`` or ``html``.

    Args:
        runs: run folders, or ledger files.
        format_: one of the four.
        p99_limit: of the 99th percentile of latency, ms; None takes the one that each run was made with.
    """
    if format_ == "html":
        from optkit.report.page import render_page

        return render_page(runs, p99_limit)
    found = read_rows(runs)
    if p99_limit is not None:
        add_limits(found, p99_limit)
    if format_ == "json":
        return json.dumps(found, indent=1) + "\n"
    from optkit.report.tables import limit_table, markdown, points, table, terminal_width

    if format_ == "md":
        return markdown(found)
    import io
    import sys

    from rich.console import Console

    width = terminal_width()
    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=sys.stdout.isatty())
    console.print(table(found, width))
    if (limits := limit_table(found, width)) is not None:
        console.print()
        console.print(limits)
    if compared := against_controls(found, points):
        console.print("\nAgainst the controls:")
        for line in compared:
            console.print(f"- {line}", highlight=False, markup=False)
    return text.getvalue()


def save_report(runs: Sequence[Path], format_: str, output: Path | None = None, p99_limit: float | None = None) -> Path:
    """Writes a report to a file, by default ``report.FORMAT`` in the first run's folder; returns the file.

    Raises:
        UserError: a run without a ledger, or a file that cannot be written.
    """
    text = render(runs, format_, p99_limit)
    first = runs[0] if runs[0].is_dir() else runs[0].parent
    file = output or first / f"report.{format_}"
    if not file.parent.is_dir():
        raise UserError(
            f"cannot write {file}: no such folder", key="--output", fix="give a file in a folder that exists"
        )
    write_text(file, text, key="--output")
    return file


def write_report(folder: Path) -> None:
    """Writes ``report.md``, ``report.json``, ``tradeoff.svg`` and ``tradeoff.png`` into a run folder.

    Every variant gets a model card. A stage of the recipe that measured sensitivities has them drawn, as
    ``sensitivity-VARIANT.svg``; a control's would rank at random.
    """
    from optkit.prune import Sensitivity
    from optkit.report.card import variant_folder, write_cards
    from optkit.report.heatmap import save_heatmap
    from optkit.report.plot import save_tradeoff
    from optkit.report.tables import markdown

    found = read_rows([folder])
    write_text(folder / "report.md", markdown(found))
    write_text(folder / "report.json", json.dumps(found, indent=1) + "\n")
    for name in ("tradeoff.svg", "tradeoff.png"):
        save_tradeoff(found, folder / name)
    write_cards(folder)
    for record in ledger.read(folder):
        if "sensitivity" in record.facts and record.control is None:
            table = Sensitivity.from_dict(record.facts["sensitivity"])
            save_heatmap(table, folder / f"sensitivity-{variant_folder(folder, record).name}.svg")
