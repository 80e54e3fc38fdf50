"""Run folders with what costs need: latencies by batch size, memory, load times, bytes."""

from dataclasses import replace

import numpy as np

from optkit.core.records import Cost, Measurement
from tests.conftest import make_record
from tests.report.runs import write_run

# ms of a batch of 1 and of 8: train, prune, recover, quantize; the whole chain halves a batch of 8 twice
CHAIN = {
    "train": ("train", 950, {1: 10.0, 8: 40.0}),
    "prune": ("prune", 550, {1: 8.0, 8: 20.0}),
    "recover": ("distill", 948, {1: 8.0, 8: 20.0}),
    "quantize": ("quantize", 947, {1: 5.0, 8: 10.0}),
}


def priced(record, load=2.0, memory=1000.0, energy=None):
    """The record with memory, load time and bytes of each engine, and joules by batch size."""
    found = []
    for m in record.measurements:
        if m.name == "latency" and m.conditions["of"] == "variant":
            here = {key: m.conditions[key] for key in ("engine", "batch_size", "threads")}
            size = here["batch_size"]
            found += [Measurement("bytes_in", 1000 * size, "B", conditions=here)]
            found += [Measurement("bytes_out", 10 * size, "B", conditions=here)]
            if energy is not None:
                found.append(Measurement("energy", energy[size], "J", conditions=here))
            if not any(m.name == "peak_memory" for m in found):
                found.append(Measurement("peak_memory", memory, "MB", conditions=here))
                found += [] if load is None else [Measurement("load", load, "s", conditions=here)]
    return replace(record, measurements=[*record.measurements, *found])


def timed(sizes, seed=0):
    """Latency series of so many ms by batch size, spread by up to 2%."""
    random = np.random.default_rng(seed)
    return {size: ms * (0.99 + 0.02 * random.random((40, 5))) for size, ms in sizes.items()}


def variant(step, stage, technique, right, sizes, drift=1.0, **changes):
    """One record, timed on eager at each batch size; ``drift`` is how slow the machine was meanwhile."""
    correct = np.arange(1000) < right
    own = CHAIN["train"][2]
    alone = timed({size: own.get(size, ms) for size, ms in sizes.items()})  # the baseline, as it was timed first
    parts = [
        make_record(
            variant=f"v{step}", parent=f"v{step - 1}" if step else None, step=step, stage=stage, batch_size=size,
            correct=correct, series={("variant", "eager"): drift * times, ("baseline", "eager"): drift * alone[size]},
        )
        for size, times in timed(sizes, step).items()
    ]  # fmt: skip
    measurements = [m for part in parts for m in part.measurements]
    record = replace(parts[0], technique=technique, measurements=measurements, cost=Cost(100.0 * step, 1.0))
    return priced(replace(record, chain=list(CHAIN)[1 : step + 1]), **changes)


def chain(**changes):
    """The chain of four."""
    return [variant(step, stage, *what, **changes) for step, (stage, what) in enumerate(CHAIN.items())]


def folder(path, **changes):
    """A run folder with the chain."""
    return write_run(path, chain(**changes))
