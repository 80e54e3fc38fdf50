"""Latency against throughput over batch sizes, and the largest batch within a limit of p99."""

from __future__ import annotations

from typing import Any

from optkit.report.batch_sizes import HEADERS, WORDS, Sweep, limit_cells, limit_title, sweeps
from optkit.report.caveats import MARK, mark
from optkit.report.page import charts
from optkit.report.page.content import Figure, Table
from optkit.report.page.formatting import DASH, name
from optkit.report.page.runs import ShownRun
from optkit.report.rows import Row

TABLE = ["variant", "engine", "batch", "p50 ms", "p99 ms", "of calls"]


def latency_figures(run: ShownRun) -> list[Figure]:
    """A curve for each length of texts, where at least 2 batch sizes were timed; and what a limit of p99 allows."""
    figures = []
    for length, workload in dict.fromkeys((row["sequence_length"], row["workload"]) for row in run.rows):
        here = [r for r in run.rows if (r["sequence_length"], r["workload"]) == (length, workload)]
        timed = [r for r in here if r["latency_p50_ms"] is not None]
        swept = [s for s in sweeps(timed) if len(s.rows) > 1]
        if swept:
            words = [f"{length} tokens"] if length else []
            figures.append(_curve(swept, "".join(f", {word}" for word in [*words, *([workload] if workload else [])])))
    lines = limit_cells(run.rows)
    if lines:
        table = Table(list(HEADERS), [[DASH if c == "-" else c for c in line] for line in lines], frozenset(WORDS))
        figures.append(Figure(limit_title(run.rows), table, wide=True))
    return figures


def _curve(swept: list[Sweep], length: str) -> Figure:
    rows = [row for sweep in swept for row in sweep.rows]
    known = all(row["latency_p99_ms"] is not None for row in rows)
    which = "p99" if known else "p50"
    values = [_point(row, which) for row in rows]
    best = max([v for v in values if not v["caveat"]] or values, key=lambda v: v["throughput"])
    limit = swept[0].limit if known else None
    caption = f"From batch {min(v['batch'] for v in values)} to {max(v['batch'] for v in values)}."
    if not known:
        caption += " Over the median: some p99 would rest on too few calls."
    if limit is not None:
        caption += f" The dashed line is the limit of {limit:g} ms."
    if any(v["caveat"] for v in values):
        caption += f" Hollow ({MARK} in the table): a timing that cannot be trusted."
    body = [[v["name"], v["engine"], str(v["batch"]), *_cells(row)] for v, row in zip(values, rows, strict=True)]
    return Figure(
        f"Throughput against {which} latency{length}",
        Table(_headers(best["unit"], swept[0].limit), body, frozenset({0, 1})),
        charts.curves(values, f"{which} latency of a batch, ms (log)", limit).to_dict(),
        f"Throughput against {which} latency of {len(swept)} pairs of variant and engine over batch sizes; the most is "
        f"{best['throughput']:,.0f} {best['unit']}, {best['name']} on {best['engine']} at batch {best['batch']}, at "
        f"{best['latency']:.3g} ms.",
        caption,
        wide=True,
    )


def _headers(unit: str, limit: float | None) -> list[str]:
    return [*TABLE, unit, *([] if limit is None else ["within the limit"])]


def _point(row: Row, which: str) -> dict[str, Any]:
    return {
        "line": f"{name(row)} on {row['engine']}", "name": name(row), "technique": row["technique"],
        "engine": row["engine"], "batch": row["batch_size"], "latency": row[f"latency_{which}_ms"],
        "throughput": row["throughput"], "tip_latency": f"{row[f'latency_{which}_ms']:.3g} ms",
        "unit": row["throughput_unit"],
        "tip_throughput": f"{row['throughput']:,.0f} {row['throughput_unit']}", "caveat": row["caveat"] or "",
    }  # fmt: skip


def _cells(row: Row) -> list[str]:
    p99 = DASH if row["latency_p99_ms"] is None else f"{row['latency_p99_ms']:.3f}"
    found = [f"{row['latency_p50_ms']:.3f}{mark(row)}", p99, str(row["latency_calls"]), f"{row['throughput']:,.0f}"]
    if row["p99_limit_ms"] is None:
        return found
    return [*found, {None: DASH, True: "yes", False: "no"}[row["within_p99_limit"]]]
