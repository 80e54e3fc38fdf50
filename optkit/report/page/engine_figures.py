"""Speedups by engine and setting."""

from __future__ import annotations

from optkit.core.setting import Setting
from optkit.report.caveats import footnote, mark
from optkit.report.page import charts
from optkit.report.page.content import Figure, Table
from optkit.report.page.formatting import DASH, change, name, ratio
from optkit.report.page.runs import ShownRun
from optkit.report.rows import Row


def engine_figures(run: ShownRun) -> list[Figure]:
    """A heat map of the speedups of every variant on every engine in every setting."""
    timed = [row for row in run.rows if row["speedup"] is not None]
    if not timed:
        return []
    by_step = sorted(timed, key=lambda r: r["step"])
    names = list(dict.fromkeys(name(r) for r in by_step))
    columns = list(dict.fromkeys(_column(r) for r in sorted(timed, key=lambda r: (r["engine"], Setting.of(r)))))
    values = [
        {
            "row": name(r),
            "column": _column(r),
            "speedup": r["speedup"],
            "text": (f"{r['speedup']:.2f}" if r["speedup"] < 10 else f"{r['speedup']:.1f}") + mark(r),
            "ci": ratio(r, "speedup"),
            "change": change(r),
            "caveat": r["caveat"] or "",
        }
        for r in by_step
    ]
    of_texts = any(r["sequence_length"] for r in timed)
    cell = {(v["row"], v["column"]): v["ci"] for v in values}
    trusted = [v for v in values if not v["caveat"]]
    best = max(trusted, key=lambda v: v["speedup"], default=None)
    largest = f"the largest is {best['text']}, {best['row']} on {best['column']}" if best else "none can be trusted"
    return [
        Figure(
            "Speedup by engine and batch size",
            Table(["variant", *columns], [[n, *(cell.get((n, c), DASH) for c in columns)] for n in names]),
            charts.heat_map(values, names, columns).to_dict(),
            f"Heat map of speedups of {len(names)} variants on {len(columns)} pairs of engine and setting; {largest}.",
            f"Blue is faster than the baseline, orange slower. Columns: engine · batch size"
            f"{' · tokens' * of_texts}{' · workload' * any(bool(r['workload']) for r in timed)}."
            + " ".join(["", *filter(None, [footnote(timed)])]),
            wide=True,
            min_width=130 + 84 * len(columns),
        )
    ]


def _column(row: Row) -> str:
    return " · ".join([row["engine"], *map(str, Setting.of(row).conditions.values())])
