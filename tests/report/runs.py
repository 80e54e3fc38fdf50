"""Run folders for the page's tests: a chain of four, and names that try to be code."""

from dataclasses import replace

import numpy as np

from optkit.core.ledger import Ledger
from optkit.core.records import Cost
from optkit.prune import Curve, Sensitivity
from tests.conftest import make_record

HOSTILE = "</script><script>window.pwned=1</script><img src=x onerror=window.pwned=1>'\"&{{7*7}}"


def answers(right, total=1000):
    return np.arange(total) < right


def series(engines, baseline_ms=4.0, seed=0, rounds=40):
    """Latency series of a variant on engines (ms), and of the baseline beside it: eager 4 ms, inductor 2 ms."""
    random = np.random.default_rng(seed)

    def times(ms):
        return ms * (1 + 0.01 * random.random((rounds, 5)))

    found = {("variant", name): times(ms) for name, ms in engines.items()}
    if baseline_ms:
        found |= {("baseline", "eager"): times(baseline_ms), ("baseline", "inductor"): times(baseline_ms / 2)}
    return found


def chain(batch_size=8):
    """train, prune (1.5 times as fast, 40 points worse), recover, quantize (4 times as fast as the baseline on eager)."""
    steps = [
        ("train", "train", 950, {"eager": 4.0, "inductor": 2.0}),
        ("prune", "prune", 550, {"eager": 8 / 3, "inductor": 4 / 3}),
        ("recover", "distill", 948, {"eager": 8 / 3, "inductor": 4 / 3}),
        ("quantize", "quantize", 947, {"inductor": 1.0}),
    ]
    records = []
    for step, (stage, technique, right, engines) in enumerate(steps):
        record = make_record(
            variant=f"v{step}", parent=f"v{step - 1}" if step else None, step=step, stage=stage, batch_size=batch_size,
            correct=answers(right), series=series(engines, 4.0 if step else None, step),
        )  # fmt: skip
        data = {"fingerprint": "f0", "examples": {"test": 1000}}
        environment = {"cpu": {"name": "A Processor", "cores": 2, "isa": ["avx2"]}, "packages": {"torch": "2.14.1"}}
        records.append(
            replace(record, technique=technique, environment=environment, data=data, cost=Cost(2.0 * step, 3.0))
        )
    return records


def sweep(limit=10.0):
    """The chain of four at batch sizes 1, 8 and 32, with a limit of p99."""
    measured = [chain(size) for size in (1, 8, 32)]
    found = []
    for records in zip(*measured, strict=True):
        measurements = [m for record in records for m in record.measurements]
        for m in measurements:
            if m.name == "latency":
                m.conditions["p99_limit_ms"] = limit
        found.append(replace(records[0], measurements=measurements))
    return found


def two_lengths():
    """The chain of four at 32 tokens, and at 64: twice as slow, of twice the MACs, and techniques bring 1.25 times more."""
    return [
        replace(record, measurements=[m for n in (32, 64) for m in _at_length(record, n)]) for record in chain()
    ]  # fmt: skip


def _at_length(record, tokens):
    for m in record.measurements:
        length = {"sequence_length": tokens}
        if m.name == "macs":
            yield replace(m, value=m.value * tokens, conditions=length)
        elif m.name == "accuracy":
            yield replace(m, conditions=m.conditions | length)
        elif m.name == "latency":
            slower = tokens / 32 * (0.8 if tokens == 64 and record.step and m.conditions["of"] == "variant" else 1)
            length |= {"interleaved": f"{record.variant}-{tokens}"}
            raw = (slower * np.array(m.raw)).tolist()
            yield replace(m, value=slower * m.value, raw=raw, conditions=m.conditions | length)
        else:
            yield m


def busy(records, place=-1, load=1.3):
    """The same records, one of which was timed while other work kept so many cores busy."""
    records = list(records)
    marked = {"disturbed": True, "other_load": load, "tries": 2}
    records[place] = replace(
        records[place],
        measurements=[
            replace(m, conditions=m.conditions | marked) if m.name == "latency" else m
            for m in records[place].measurements
        ],
    )
    return records


def write_run(folder, records, recipe="chain: [train]\n"):
    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        Ledger(folder / "ledger.jsonl").append(record)
    (folder / "recipe.yaml").write_text(recipe)
    return folder


def hostile(records):
    """The same records under names that try to be code."""
    return [replace(r, stage=r.stage + HOSTILE, recipe=HOSTILE, technique=HOSTILE) for r in records]


def many(count=200):
    """A baseline and its many variants."""
    random = np.random.default_rng(0)
    first, *_ = chain()
    rest = []
    for step in range(1, count):
        share = random.uniform(0.2, 1)
        times = series({"eager": 4 * share, "inductor": 2 * share}, 4.0, step)
        record = make_record(
            variant=f"v{step}", parent="v0", step=step, stage=f"cut{step}", batch_size=8, series=times,
            correct=answers(950 - int(300 * (1 - share) ** 2)),
        )  # fmt: skip
        rest.append(replace(record, technique="prune", environment=first.environment, data=first.data))
    return [first, *rest]


def sensitivity():
    curves = [Curve(f"layers.{n}.weight", 8, [1, 4], [10, 40], [100, 400], [0.25, 1.5]) for n in range(3)]
    return Sensitivity("Net", "loss", "l2", 0.2, 100, 1000, curves)
