"""Replicas: what a variant on an engine takes, and how long it serves, read from the records of a run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optkit.core.caveat import timing_caveat
from optkit.core.errors import UserError
from optkit.core.records import Measurement, Record
from optkit.core.setting import Setting
from optkit.core.statistics import median
from optkit.costs.service import LEVELS, BatchTimes, Service, TokenTimes
from optkit.engines.registry import ENGINES
from optkit.report.page.runs import variant_names


@dataclass(frozen=True)
class Replica:
    """One process that serves a variant on an engine.

    Attributes:
        record: the variant.
        folder: of its run.
        variant_name: in the run.
        engine: that serves it.
        service: how long a batch takes.
        threads: that it was measured with: it needs so many cores.
        memory_gb: the peak of a fresh process that serves.
        load_s: from the start of a fresh process to its first answer; None where it was not measured.
        bytes_in, bytes_out: of a request and of its answer; 0 for tokens.
        energy_j: of a batch, by measured batch size; empty where it was not measured.
        caveat: why its timing cannot be trusted.
    """

    record: Record
    folder: Path
    variant_name: str
    engine: str
    service: Service
    threads: int
    memory_gb: float
    load_s: float | None
    bytes_in: float
    bytes_out: float
    energy_j: dict[int, float]
    caveat: str | None

    @property
    def name(self) -> str:
        """The variant and its engine, in words."""
        return f"{self.variant_name} on {self.engine}"

    def energy(self, batches: NDArray[np.int64]) -> float | None:
        """Joules of so many batches of each size; None where energy was not measured at each batch size."""
        sizes = list(self.energy_j)
        if sizes != list(self.service.sizes):
            return None
        every = np.arange(batches.size)
        place = np.minimum(np.searchsorted(sizes, every), len(sizes) - 1)
        filled = isinstance(self.service, BatchTimes) and self.service.filled
        taken = np.array(sizes)[place] if filled else every
        return float((batches * np.interp(taken, sizes, list(self.energy_j.values()))).sum())

    def cold_start_s(self, platform_s: float) -> float:
        """From the order of a replica to its first batch, where the platform takes so long to start a process.

        Raises:
            UserError: the load time was not measured.
        """
        if self.load_s is None:
            fix = f"{measure_again(self.folder)}, or --policy fixed"
            raise UserError(f"the load time of {self.name} was not measured", key=str(self.folder), fix=fix)
        return platform_s + self.load_s


def replicas_of(folder: Path, records: Sequence[Record]) -> list[Replica]:
    """Each variant of a run on each engine that it was timed on.

    Args:
        folder: of the run, for messages.
        records: of the run, each variant once.

    Raises:
        UserError: a batch of 1, or the memory of a replica, was not measured.
    """
    names = variant_names(records)
    baselines = {record.variant: record for record in records}
    return [
        _replica(folder, record, baselines.get(record.baseline), names[record.step, record.variant], engine)
        for record in records
        for engine in _engines(record)
    ]


def at_speed(replica: Replica, speed: float) -> Replica:
    """The same replica on cores that are so many times as fast."""
    load = None if replica.load_s is None else replica.load_s / speed
    return replace(replica, service=replica.service.times(1 / speed), load_s=load)


def check_tokens(replica: Replica, longest: int) -> None:
    """Raises UserError where prompts and answers are longer than those that were timed.

    Args:
        replica: of a language model.
        longest: tokens behind which the times must be known.
    """
    assert isinstance(replica.service, TokenTimes)
    lengths = replica.service.lengths
    if longest > lengths[-1]:
        while lengths[-1] < longest:
            lengths = [*lengths, 2 * lengths[-1]]
        fix = measure_again(replica.folder, f"measure.prompt_lengths=[{','.join(map(str, lengths))}]")
        message = (
            f"{replica.name} was timed behind up to {replica.service.lengths[-1]} tokens, and traffic has {longest}"
        )
        raise UserError(message, key=str(replica.folder), value=longest, fix=fix)


def measure_again(folder: Path, *overrides: str) -> str:
    """The command that measures a run again."""
    return " ".join(["optkit measure", shlex.quote(str(folder)), *map(shlex.quote, overrides)])


def _engines(record: Record) -> list[str]:
    timed = (m.conditions["engine"] for m in record.measurements if m.name == "latency" and m.holds(of="variant"))
    return list(dict.fromkeys(timed))


def _replica(folder: Path, record: Record, baseline: Record | None, variant_name: str, engine: str) -> Replica:
    timed = [_at_speed_of(baseline, record, latency) for latency in _timed(record, engine)]
    sizes = sorted({m.conditions["batch_size"] for m in timed})
    name = f"{variant_name} on {engine}"
    if sizes[0] != 1:
        fix = measure_again(folder, f"measure.batch_sizes=[{','.join(map(str, (1, *sizes)))}]")
        message = f"{name} was timed at batch {', '.join(map(str, sizes))} only, and a request may come alone"
        raise UserError(message, key=str(folder), value=sizes, fix=fix)
    memory = record.find("peak_memory", engine=engine)
    if memory is None or memory.value is None:
        fix = measure_again(folder, "measure.memory=true")
        raise UserError(f"the memory of {name} was not measured", key=str(folder), fix=fix)
    load = record.find("load", engine=engine)
    of_tokens = any(m.conditions.get("workload") == "decode" for m in timed)
    moved = [0.0 if of_tokens else _a_request(record, what, timed[0]) for what in ("bytes_in", "bytes_out")]
    return Replica(
        record=record,
        folder=folder,
        variant_name=variant_name,
        engine=engine,
        service=_token_times(timed) if of_tokens else _batch_times(timed, engine),
        threads=timed[0].conditions["threads"],
        memory_gb=memory.value / 1e3,
        load_s=None if load is None else load.value,
        bytes_in=moved[0],
        bytes_out=moved[1],
        energy_j={} if of_tokens else _energy(record, timed),
        caveat=timing_caveat(timed, [median(_seconds(m)).ci for m in timed]),
    )


def _timed(record: Record, engine: str) -> list[Measurement]:
    """The latencies that count, smallest batch first: of generation, or of forward passes at the longest texts."""
    found = [m for m in record.measurements if m.name == "latency" and m.holds(of="variant", engine=engine)]
    if any(m.conditions.get("workload") == "decode" for m in found):
        return sorted((m for m in found if Setting.of(m.conditions).workload), key=lambda m: Setting.of(m.conditions))
    longest = max(m.conditions.get("sequence_length") or 0 for m in found)
    chosen = [m for m in found if (m.conditions.get("sequence_length") or 0) == longest]
    return sorted(chosen, key=lambda m: m.conditions["batch_size"])


def _at_speed_of(baseline: Record | None, record: Record, latency: Measurement) -> Measurement:
    """The times of a variant as they would be at the speed that the machine had when it timed the baseline.

    Some machines change their speed between one variant and the next. The baseline on the reference engine is timed in
    the same rounds as each variant, so it says by how much.
    """
    if baseline is None or baseline is record:
        return latency
    here = {"engine": baseline.reference} | Setting.of(latency.conditions).conditions
    alone, beside = baseline.find("latency", of="variant", **here), record.beside(latency, baseline.reference)
    if alone is None or beside is None or not alone.raw or not beside.raw:
        return latency
    factor = float(np.median(_seconds(alone)) / np.median(_seconds(beside)))
    return replace(latency, raw=(factor * np.asarray(latency.raw, dtype=np.float64)).tolist())


def _seconds(latency: Measurement) -> NDArray[np.float64]:
    """Timed calls in s, ``(rounds, calls)``."""
    return np.asarray(latency.raw, dtype=np.float64) / 1e3


def _ends(latency: Measurement) -> tuple[float, float]:
    """Ends of the interval of a median, over the median; 1 where there is no interval."""
    found = median(_seconds(latency))
    return (found.low / found.value, found.high / found.value) if found.ci else (1.0, 1.0)


def _batch_times(timed: Sequence[Measurement], engine: str) -> BatchTimes:
    return BatchTimes(
        sizes=[m.conditions["batch_size"] for m in timed],
        quantiles=np.array([np.quantile(_seconds(m), LEVELS) for m in timed]),
        ends=np.array([_ends(m) for m in timed]),
        filled=engine in ENGINES and ENGINES[engine].fills_batches,
    )


def _token_times(timed: Sequence[Measurement]) -> TokenTimes:
    found: dict[tuple[str, int, int], Measurement] = {}
    for m in timed:
        found[m.conditions["workload"], m.conditions["batch_size"], m.conditions["sequence_length"]] = m
    sizes = sorted({size for _, size, _ in found})
    lengths = sorted({length for _, _, length in found})

    def grid(workload: str) -> NDArray[np.float64]:
        return np.array([[np.median(_seconds(found[workload, size, length])) for length in lengths] for size in sizes])

    relative = [_seconds(m) / np.median(_seconds(m)) for (work, *_), m in found.items() if work == "prefill"]
    ends = np.array([_ends(m) for m in timed])
    return TokenTimes(
        sizes=sizes,
        lengths=lengths,
        prefill=grid("prefill"),
        decode=grid("decode"),
        spread=np.quantile(np.concatenate([r.ravel() for r in relative]), LEVELS),
        ends=(float(ends[:, 0].min()), float(ends[:, 1].max())),
    )


def _a_request(record: Record, what: str, latency: Measurement) -> float:
    """Bytes of one request: of a batch of 1."""
    found = record.find(what, **_where(latency))
    return 0.0 if found is None or found.value is None else float(found.value)


def _energy(record: Record, timed: Sequence[Measurement]) -> dict[int, float]:
    measured = {m.conditions["batch_size"]: record.find("energy", **_where(m)) for m in timed}
    return {size: float(m.value) for size, m in measured.items() if m is not None and m.value is not None}


def _where(latency: Measurement) -> dict[str, Any]:
    return {"engine": latency.conditions["engine"]} | Setting.of(latency.conditions).conditions
