"""What may not stand in one table unsaid: other machines, threads, data, versions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optkit.core.errors import UserError
from optkit.core.records import Record


def cautions(records: Sequence[Record]) -> list[str]:
    """One line for each thing that the records differ in and on which figures depend.

    Speedups and differences of accuracy are taken within a run, and stand; latencies in milliseconds, and accuracies
    across runs, do not compare where this names a difference.

    Raises:
        UserError: one run's records are of different data, so that its differences would not be paired.
    """
    for run in dict.fromkeys(r.run for r in records):
        fingerprints = {str(r.data.get("fingerprint")) for r in records if r.run == run}
        if len(fingerprints) > 1:
            message = f"run {run} holds records of different data"
            raise UserError(message, key="ledger", fix="report its ledgers one by one")
    lines = []
    for what, of in (
        ("processor", lambda r: r.environment.get("cpu", {}).get("name")),
        ("threads", lambda r: r.environment.get("threads")),
        ("torch", lambda r: r.environment.get("packages", {}).get("torch")),
        ("data", lambda r: r.data.get("fingerprint")),
        ("batch sizes", _batch_sizes),
    ):
        values = {str(value) for value in map(of, records) if value}
        if len(values) > 1:
            found = ", ".join(sorted(values))
            lines.append(f"these records differ in {what} ({found}): only ratios within a run compare")
    return lines


def _batch_sizes(record: Record) -> Any:
    return sorted({m.conditions["batch_size"] for m in record.measurements if m.name == "accuracy"})
