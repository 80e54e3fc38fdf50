"""Batch sizes as a sweep: latency against throughput, and the largest batch whose p99 stays within a limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
MIN_CALLS = 300  # from 299 calls on, the slowest is above the true p99 with 95% confidence
HEADERS = ("stage", "engine", "largest batch", "p99 ms", "examples/s", "remark")
WORDS = (0, 1, 5)


@dataclass(frozen=True)
class Sweep:
    """One variant on one engine, at every batch size that it was measured at.

    Attributes:
        rows: smallest batch first.
    """

    rows: list[Row]

    @property
    def limit(self) -> float | None:
        """The stated limit of p99, ms."""
        return next((row["p99_limit_ms"] for row in self.rows if row["p99_limit_ms"] is not None), None)

    @property
    def largest(self) -> Row | None:
        """The row of the largest batch that is known to stay within the limit."""
        return next((row for row in reversed(self.rows) if row["within_p99_limit"]), None)

    @property
    def remark(self) -> str:
        """A remark on what is not known."""
        unknown = [row for row in self.rows if row["within_p99_limit"] is None]
        parts = []
        if self.largest is self.rows[-1]:
            parts.append("the largest measured: a larger one may fit")
        elif self.largest is None:
            parts.append("nothing can be said" if len(unknown) == len(self.rows) else "no batch size measured fits")
        if unknown:
            parts.append("p99 not known at batch " + ", ".join(_why_unknown(row) for row in unknown))
        return "; ".join(parts)


def sweeps(rows: Sequence[Row]) -> list[Sweep]:
    """The rows of each run, variant, engine, length of texts and workload, in the order in which they come."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        where = row["engine"], row["threads"], row["sequence_length"], row.get("workload")
        key = (row["run"], row["step"], row["variant"], *where)
        found.setdefault(key, []).append(row)
    return [Sweep(sorted(own, key=lambda r: r["batch_size"])) for own in found.values()]


def add_limits(rows: Sequence[Row], limit: float | None = None) -> None:
    """Says in every row whether its p99 stays within the limit, and which is the largest measured batch that does.

    A timing that cannot be trusted says neither.

    Args:
        rows: of any runs; each has ``latency_p99_ms`` and ``p99_limit_ms``.
        limit: of p99, ms, instead of the one that a run was made with.
    """
    for row in rows:
        if limit is not None:
            row["p99_limit_ms"] = limit
        p99, stated = row["latency_p99_ms"], row["p99_limit_ms"]
        unknown = p99 is None or stated is None or row["caveat"] is not None
        row["within_p99_limit"] = None if unknown else p99 <= stated
    for sweep in sweeps(rows):
        best = sweep.largest
        for row in sweep.rows:
            row["largest_batch_within_p99_limit"] = best and best["batch_size"]
            row["throughput_within_p99_limit"] = best and best["throughput"]


def limit_title(rows: Sequence[Row]) -> str:
    """What the table of `limit_cells` is about, with what it rests on."""
    limits = sorted({row["p99_limit_ms"] for row in rows if row["p99_limit_ms"] is not None})
    calls = sorted({row["latency_calls"] for row in rows if row["within_p99_limit"] is not None})
    sizes = ", ".join(map(str, sorted({row["batch_size"] for row in rows})))
    over = "" if not calls else f" over {calls[0]}" + (f" to {calls[-1]}" if len(calls) > 1 else "") + " timed calls"
    return (
        f"Largest batch with a p99 of at most {' or '.join(f'{x:g}' for x in limits)} ms, of the batch sizes measured "
        f"({sizes}). p99 is taken{over}; of fewer than {MIN_CALLS} it is left out. Throughput is that at the median."
    )


def limit_cells(rows: Sequence[Row]) -> list[list[str]]:
    """A line of text cells under `HEADERS` for each variant and engine; none where no limit is stated."""
    lines = []
    for sweep in sweeps(rows):
        if sweep.limit is None:
            continue
        first, best = sweep.rows[0], sweep.largest
        stage = first.get("name") or f"{first['step']} {first['stage']}" + (
            f" ({first['control']})" if first.get("control") else ""
        )
        length = f", {first['sequence_length']} tokens" if first["sequence_length"] else ""
        length += f", {first['workload']}" if first.get("workload") else ""
        figures = (
            ["-", "-", "-"]
            if best is None
            else [str(best["batch_size"]), f"{best['latency_p99_ms']:.2f}", f"{best['throughput']:,.0f}"]
        )
        lines.append([stage, first["engine"] + length, *figures, sweep.remark])
    return lines


def _why_unknown(row: Row) -> str:
    calls = row["latency_calls"]
    return f"{row['batch_size']} ({'not timed' if not calls else row['caveat'] or f'{calls} calls'})"
