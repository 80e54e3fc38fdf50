"""What may not stand in one table unsaid: other machines, engines' versions, threads, data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optkit.core.environment import timing_packages
from optkit.core.errors import UserError
from optkit.core.records import Record

MACHINE = ("processor", "GPU")


def cautions(records: Sequence[Record]) -> list[str]:
    """One line for each thing that the records differ in and on which figures depend.

    Speedups and differences of quality are taken within a run, and stand; latencies in milliseconds, and qualities
    across runs, do not compare where this names a difference.

    Raises:
        UserError: one run's records are of different data, so that its differences would not be paired.
    """
    runs = dict.fromkeys(record.run for record in records)
    for run in runs:
        fingerprints = {str(r.data.get("fingerprint")) for r in records if r.run == run}
        if len(fingerprints) > 1:
            message = f"run {run} holds records of different data"
            raise UserError(message, key="ledger", fix="report its ledgers one by one")
    found = differences([surroundings(record) | _conditions(record) for record in records])
    found |= differences([_settings([r for r in records if r.run == run]) for run in runs])
    return [
        f"these records differ in {what} ({'; '.join(sorted(values))}): only ratios within a run compare"
        for what, values in found.items()
    ]


def surroundings(record: Record) -> dict[str, str]:
    """What is known of the machine that a record was measured on and of its engines: latencies depend on it.

    What an older ledger does not say has no entry.
    """
    environment, packages = record.environment, record.environment.get("packages", {})
    found = {"processor": processor(environment), "GPU": gpu(environment)}
    found |= {name: packages.get(name) for name in timing_packages(environment)}
    return {what: value for what, value in found.items() if value is not None}


def processor(environment: Mapping[str, Any]) -> str | None:
    """The processor's name and cores; None if it is not known."""
    cpu = environment.get("cpu", {})
    if not cpu.get("name"):
        return None
    return cpu["name"] + (f", {cpu['cores']} cores" if cpu.get("cores") else "")


def gpu(environment: Mapping[str, Any]) -> str | None:
    """The GPU's name and driver, or that there is none; None if that is not known."""
    if "gpu" not in environment:
        return None
    found = environment["gpu"]
    return f"{found['name']}, driver {found.get('driver') or 'unknown'}" if found else "no GPU"


def differences(described: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """The values of each thing that these differ in; what one does not say, it does not differ in."""
    every = dict.fromkeys(what for one in described for what in one)
    values = {what: list(dict.fromkeys(one[what] for one in described if what in one)) for what in every}
    return {what: found for what, found in values.items() if len(found) > 1}


def _conditions(record: Record) -> dict[str, str]:
    found = {"threads": record.environment.get("threads"), "data": record.data.get("fingerprint")}
    return {what: str(value) for what, value in found.items() if value}


def _settings(records: Sequence[Record]) -> dict[str, str]:
    """Those of one run: not every variant need be measured in all of them."""
    settings = sorted({setting for record in records for setting in record.settings})
    return {"settings": " and ".join(map(str, settings))} if settings else {}
