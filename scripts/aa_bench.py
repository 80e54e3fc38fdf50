"""A model against itself on the real bench: how often does a speedup's interval call the two different?

    python scripts/aa_bench.py [--comparisons 40] [--seconds 2] [--batch-size 32] [--engine eager] [--threads 2]

Each comparison compiles the same ResNet-20 twice and times the two in turn, as a recipe's measurement does. A 95%
interval of their ratio that holds its promise misses 1 in one of twenty.
"""

from __future__ import annotations

import argparse

import torch

from optkit import engines
from optkit.core.environment import cpu
from optkit.core.statistics import ratio_of_medians
from optkit.measure.latency import interleaved
from optkit.models import ResNetCIFAR


def main() -> None:
    """Print every comparison, and how many called the model different from itself."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comparisons", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=2.0, help="of timing for each comparison")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--engine", default="eager")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    x = (torch.randn(args.batch_size, 3, 32, 32),)
    model = ResNetCIFAR(20).eval()
    different = 0
    for number in range(args.comparisons):
        sessions = {name: engines.compile(model, x, engine=args.engine) for name in ("one", "other")}
        series = interleaved(sessions, x, args.seconds, seed=number)
        ratio = ratio_of_medians(series["one"].samples, series["other"].samples)
        called = not ratio.low <= 1 <= ratio.high
        different += called
        note = "  DIFFERENT" if called else ""
        print(f"{number + 1:3}  {ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]{note}", flush=True)
    where = f"{cpu()['name']}, {args.threads} threads, {args.engine}, batch {args.batch_size}"
    print(f"{different} of {args.comparisons} called different; {where}")


if __name__ == "__main__":
    main()
