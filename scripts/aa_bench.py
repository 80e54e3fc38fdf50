"""How often the latency bench tells a model from itself, on this machine.

    python scripts/aa_bench.py [--comparisons 40] [--seconds 2] [--batch-size 32] [--engine eager] [--threads N]
        [--precision 0.02] [--by compare] [--load 2 --load-on 3 --load-off 6]

Each comparison compiles the same model twice and times the two sessions in turn, as a run times a candidate beside its
baseline. The true ratio is 1, so about 1 in 20 of the 95% intervals should leave it out.

``--load 2`` runs two processes beside it that keep a core each busy, and pause, together. Busy times are 3 s on average
and pauses 6 s, each between half and one and a half times that, so that they do not keep step with the comparisons. On
a machine that is otherwise idle, no more than 3 of 40 comparisons that are not marked as disturbed should exclude 1:

    python scripts/aa_bench.py --load 2 --threads 2
    python scripts/aa_bench.py --load 1 --load-on 0.2 --load-off 1.8 --threads 2

``--by compare`` asks `optkit.compare`, as a notebook does, which stops where the ratio is known to 2%.

The load ends with the script, with the process that started it, and after ``--load-limit`` seconds (1,800). The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from scipy.stats import binom

import optkit
from optkit.core.cores import default_threads
from optkit.core.environment import environment
from optkit.core.statistics import CONFIDENCE, ratio_of_medians
from optkit.core.variant import Variant
from optkit.engines import ENGINES
from optkit.measure.latency import interleaved
from optkit.models import SmallCNN

# arguments: busy and paused seconds, limit, when they started; all draw the same times from there
LOAD = """
import os, random, sys, time
on, off, limit, start = map(float, sys.argv[1:])
parent, times, change = os.getppid(), random.Random(0), start
while time.time() < start + limit and os.getppid() == parent:
    change += on * times.uniform(0.5, 1.5)
    while time.time() < change:
        pass
    change += off * times.uniform(0.5, 1.5)
    time.sleep(max(change - time.time(), 0))
"""


@contextmanager
def load(processes: int, on: float, off: float, limit: float) -> Iterator[None]:
    """So many busy processes beside the block, which pause together.

    Args:
        processes: how many; each keeps one core busy.
        on: seconds that they are busy, on average.
        off: seconds that they pause, on average.
        limit: seconds after which they end by themselves.
    """
    command = [sys.executable, "-c", LOAD, str(on), str(off), str(limit), str(time.time())]
    started = [subprocess.Popen(command) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def compare(engine_name: str, batch_size: int, seconds: float, seed: int, precision: float | None = None) -> dict:
    """One comparison: the ratio of the two medians, its interval, and what is known of how it was timed."""
    model, inputs = model_and_inputs(batch_size, seed)
    variant = Variant("a", None, frozenset({"float"}), {})
    sessions = {name: ENGINES[engine_name]().compile(model, variant, inputs) for name in ("first", "second")}
    series = interleaved(sessions, inputs, seconds, seed, 1, precision, [("first", "second")])
    first, second = series["first"], series["second"]
    ratio = ratio_of_medians(first.samples, second.samples)
    return {
        "ratio": ratio.value,
        "ci": ratio.ci,
        "excludes_1": not ratio.low <= 1 <= ratio.high,
        "rounds": len(first.samples),
        "stopped": first.stopped,
        "tries": first.tries,
        "other_load": first.load.mean,
        "other_load_peak": first.load.peak,
        "disturbed": first.load.disturbs,
    }


def compare_by_function(engine_name: str, batch_size: int, seconds: float, seed: int) -> dict:
    """The same comparison by `optkit.compare`."""
    model, inputs = model_and_inputs(batch_size, seed)
    models = {"first": model, "second": model}
    asked = optkit.compare(models, inputs, engines=[engine_name], reference="second", seconds=seconds, seed=seed)
    row = asked.rows[0]
    # how many times as fast is the inverse of how many times as slow
    low, high = row["speedup_ci"] or (0.0, math.inf)
    known = {key: row[key] for key in ("rounds", "stopped", "tries", "other_load", "other_load_peak", "disturbed")}
    ci = [1 / high, 1 / low] if low else None
    return {"ratio": 1 / row["speedup"], "ci": ci, "excludes_1": not low <= 1 <= high} | known


def model_and_inputs(batch_size: int, seed: int) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """Of one comparison."""
    torch.manual_seed(seed)
    return SmallCNN(10, 3, [16, 32, 64]).eval(), (torch.randn(batch_size, 3, 32, 32),)


def arguments() -> argparse.Namespace:
    """Of the command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=2.0, help="of timing for each comparison")
    parser.add_argument("--precision", type=float, help="stop sooner at this precision; by default the time is spent")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--engine", choices=list(ENGINES), default="eager")
    parser.add_argument("--threads", type=int, default=default_threads().count)
    parser.add_argument("--by", choices=("bench", "compare"), default="bench", help="whose comparison it is")
    parser.add_argument("--load", type=int, default=0, help="busy processes that come and go meanwhile")
    parser.add_argument("--load-on", type=float, default=3.0, help="seconds that they are busy, on average")
    parser.add_argument("--load-off", type=float, default=6.0, help="seconds that they pause, on average")
    parser.add_argument("--load-limit", type=float, default=1800.0, help="seconds after which they end in any case")
    found = parser.parse_args()
    numbers = (found.comparisons, found.batch_size, found.threads, found.seconds, found.load_on, found.load_limit)
    if not all(number > 0 for number in numbers) or found.load < 0 or found.load_off < 0:
        parser.error("numbers must be above 0")
    if found.by == "compare" and found.precision is not None:
        parser.error("optkit.compare has a precision of its own: leave --precision out")
    return found


def main() -> None:
    """Prints each comparison, the counts, and how likely counts as large are for intervals that hold 95%."""
    options = arguments()
    torch.set_num_threads(options.threads)
    machine = environment(options.threads, ENGINES[options.engine].packages)
    cpu, packages = machine["cpu"], machine["packages"]
    print(f"{cpu['name']}, {cpu['cores']} cores, {options.threads} threads, torch {packages['torch']}")
    print(f"{options.engine}, batch {options.batch_size}, {options.seconds:g} s of timing each")
    if options.load:
        print(f"beside {options.load} processes, {options.load_on:g} s busy and {options.load_off:g} s paused")
    sys.stdout.flush()
    found = []
    with load(options.load, options.load_on, options.load_off, options.load_limit):
        for number in range(1, options.comparisons + 1):
            asked = (options.engine, options.batch_size, options.seconds, number)
            one = compare_by_function(*asked) if options.by == "compare" else compare(*asked, options.precision)
            found.append(one)
            interval = "[{:.4f}, {:.4f}]".format(*one["ci"]) if one["ci"] else "no interval"
            marks = ("  excludes 1" if one["excludes_1"] else "") + ("  disturbed" if one["disturbed"] else "")
            print(f"{number:4d}  {one['ratio']:.4f} {interval}  {one['rounds']} rounds{marks}", flush=True)
    unmarked = [one for one in found if not one["disturbed"]]
    print(_sentence(found, "intervals"))
    print(_sentence(unmarked, "intervals of comparisons that are not marked as disturbed"))
    about = {"machine": machine, "seconds": options.seconds, "engine": options.engine, "batch_size": options.batch_size}
    about |= {
        "by": options.by,
        "precision": options.precision,
        "load": [options.load, options.load_on, options.load_off],
    }
    counts = {"excluding": _excluding(found), "excluding_unmarked": _excluding(unmarked), "unmarked": len(unmarked)}
    print(json.dumps(about | counts | {"comparisons": found}))


def _excluding(found: list[dict]) -> int:
    return sum(one["excludes_1"] for one in found)


def _sentence(found: list[dict], what: str) -> str:
    """How many exclude 1, and what is expected."""
    given = [one for one in found if one["ci"]]
    count, total = _excluding(given), len(given)
    chance = float(binom.sf(count - 1, total, 1 - CONFIDENCE))
    return (
        f"{count} of {total} {what} exclude 1; {(1 - CONFIDENCE) * total:.1f} are expected of intervals that hold "
        f"{CONFIDENCE:.0%}, and {count} or more come up {chance:.0%} of the time."
    )


if __name__ == "__main__":
    main()
