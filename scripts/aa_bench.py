"""How often the latency bench tells a model from itself, on this machine.

    python scripts/aa_bench.py [--comparisons 40] [--seconds 2] [--batch-size 32] [--engine eager] [--threads N]

Each comparison compiles the same model twice and times the two sessions in turn, as a run times a candidate beside its
baseline. The true ratio is 1, so about 1 in 20 of the 95% intervals should leave it out. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json

import torch
from scipy.stats import binom

from optkit.core.environment import available_cores, environment
from optkit.core.statistics import CONFIDENCE, ratio_of_medians
from optkit.core.variant import Variant
from optkit.engines import ENGINES
from optkit.measure.disturbance import disturbed
from optkit.measure.latency import interleaved
from optkit.models import SmallCNN


def compare(engine_name: str, batch_size: int, seconds: float, seed: int) -> dict:
    """One comparison: the ratio of the two medians, its interval, and what is known of how it was timed."""
    torch.manual_seed(seed)
    model = SmallCNN(10, 3, [16, 32, 64]).eval()
    inputs = (torch.randn(batch_size, 3, 32, 32),)
    variant = Variant("a", None, frozenset({"float"}), {})
    sessions = {name: ENGINES[engine_name]().compile(model, variant, inputs) for name in ("first", "second")}
    series = interleaved(sessions, inputs, seconds, seed, retries=1)
    first, second = series["first"], series["second"]
    ratio = ratio_of_medians(first.samples, second.samples, seed)
    return {
        "ratio": ratio.value,
        "ci": ratio.ci,
        "excludes_1": not ratio.low <= 1 <= ratio.high,
        "rounds": len(first.samples),
        "other_load": first.others,
        "disturbed": disturbed(first.others),
    }


def main() -> None:
    """Prints each comparison, the count, and how likely a count as large is for intervals that hold 95%."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--comparisons", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=2.0, help="of timing for each comparison")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--engine", choices=list(ENGINES), default="eager")
    parser.add_argument("--threads", type=int, default=available_cores())
    options = parser.parse_args()
    if options.comparisons < 1 or options.batch_size < 1 or options.threads < 1 or not options.seconds > 0:
        parser.error("numbers must be above 0")
    torch.set_num_threads(options.threads)
    machine = environment(options.threads)
    cpu, packages = machine["cpu"], machine["packages"]
    print(f"{cpu['name']}, {cpu['cores']} cores, {options.threads} threads, torch {packages['torch']}")
    print(f"{options.engine}, batch {options.batch_size}, {options.seconds:g} s of timing each", flush=True)
    found = []
    for number in range(1, options.comparisons + 1):
        one = compare(options.engine, options.batch_size, options.seconds, number)
        found.append(one)
        low, high = one["ci"]
        marks = ("  excludes 1" if one["excludes_1"] else "") + ("  disturbed" if one["disturbed"] else "")
        print(f"{number:4d}  {one['ratio']:.4f} [{low:.4f}, {high:.4f}]  {one['rounds']} rounds{marks}", flush=True)
    count, total = sum(one["excludes_1"] for one in found), len(found)
    chance = float(binom.sf(count - 1, total, 1 - CONFIDENCE))
    print(
        f"{count} of {total} intervals exclude 1; {(1 - CONFIDENCE) * total:.1f} are expected of intervals that hold "
        f"{CONFIDENCE:.0%}, and {count} or more come up {chance:.0%} of the time. "
        f"{sum(one['disturbed'] for one in found)} were timed while other work disturbed the machine."
    )
    about = {"machine": machine, "seconds": options.seconds, "engine": options.engine, "batch_size": options.batch_size}
    print(json.dumps(about | {"excluding": count, "comparisons": found}))


if __name__ == "__main__":
    main()
