"""A sweep of 12 jobs, several at a time, and the same runs alone: are the latencies the same, and is nothing missing?

    python -m scripts.sweep_timings RECIPE [OVERRIDE ...] [--launcher parallel|ray|basic] [--results FILE]

The jobs train beside each other, and time their variants in turn, under the host's lock. Then the same jobs run one
after the other in other run folders of the same store, which makes nothing and times everything anew. A row is one
variant on one engine at one batch size: both medians with their intervals. The table says how many intervals overlap,
and how far the medians are apart. Two runs alone do not agree in all of them either: ``basic`` is that control.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.results import Results, machine, machines

JOBS = ("seed=0,1,2,3", "stages.prune.amount=0.3,0.5,0.7")
LAUNCHERS = {
    "parallel": ["hydra/launcher=parallel", "hydra.launcher.n_jobs=2"],
    "ray": ["hydra/launcher=ray", "hydra.launcher.address=auto"],
    "basic": [],
}


def sweep(recipe: str, overrides: Sequence[str], out: Path, store: Path) -> tuple[float, int]:
    """Runs the jobs; seconds, and how many failed."""
    command = [sys.executable, "-m", "optkit", "run", recipe, "-m", *JOBS, *overrides]
    begun = time.perf_counter()
    done = subprocess.run([*command, f"out={out}", f"store={store}", "sweep=jobs"], check=False)
    return time.perf_counter() - begun, done.returncode


def timings(out: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Rows with a timing, by variant and where it was timed."""
    from optkit.report import read_rows

    found = {}
    for folder in sorted(path for path in out.iterdir() if (path / "ledger.jsonl").is_file()):
        for row in read_rows([folder]):
            if row["latency_p50_ms"] is not None and row["control"] is None:
                place = folder.name, row["step"], row["engine"], row["workload"], row["batch_size"]
                found[place] = {key: row[key] for key in ("latency_p50_ms", "latency_p50_ms_ci", "caveat")}
    return found


def compared(beside: dict[tuple[Any, ...], Any], alone: dict[tuple[Any, ...], Any]) -> list[dict[str, Any]]:
    """Both timings of each place; None where one is missing."""
    names = ("run", "step", "engine", "workload", "batch_size")
    return [
        dict(zip(names, place, strict=True)) | {"beside": beside.get(place), "alone": alone.get(place)}
        for place in sorted({*beside, *alone}, key=str)
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """One line for each launcher."""
    lines = [
        "| launcher | jobs | seconds | timings | missing | marked | intervals overlap | ratio: median, p90 |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for launcher in dict.fromkeys(row["launcher"] for row in rows):
        own = [row for row in rows if row["launcher"] == launcher]
        both = [row for row in own if row["beside"] and row["alone"]]
        good = [row for row in both if not row["beside"]["caveat"] and not row["alone"]["caveat"]]
        ends = [(row["beside"]["latency_p50_ms_ci"], row["alone"]["latency_p50_ms_ci"]) for row in good]
        overlap = sum(a[0] <= b[1] and b[0] <= a[1] for a, b in ends)
        ratios = [row["beside"]["latency_p50_ms"] / row["alone"]["latency_p50_ms"] for row in good]
        apart = np.quantile(np.exp(np.abs(np.log(ratios))), 0.9) if ratios else np.nan
        cells = [
            launcher,
            len({row["run"] for row in own}),
            f"{own[0]['seconds']:.0f}",
            len(own),
            len(own) - len(both),
            len(both) - len(good),
            f"{overlap} of {len(good)}",
            f"{np.median(ratios) if ratios else np.nan:.3f}, {apart:.3f}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, "", *machines(rows, "launcher")])


def main() -> None:
    """Runs the jobs of a launcher, unless its rows are there, and prints the table."""
    from optkit.core.environment import environment

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--launcher", choices=LAUNCHERS, default="parallel")
    parser.add_argument("--results", type=Path)
    args = parser.parse_intermixed_args()
    results = Results(args.results, {"recipe": Path(args.recipe).stem}, "sweep_timings")
    if not results.has(launcher=args.launcher):
        with tempfile.TemporaryDirectory() as folder:
            beside, alone, store = (Path(folder) / name for name in ("beside", "alone", "store"))
            seconds, code = sweep(args.recipe, [*args.overrides, *LAUNCHERS[args.launcher]], beside, store)
            _, code_alone = sweep(args.recipe, args.overrides, alone, store)
            rows = compared(timings(beside), timings(alone))
        said = {"launcher": args.launcher, "seconds": seconds, "failed": max(code, code_alone)}
        said["machine"] = machine(environment(torch.get_num_threads(), ()))
        for row in rows:
            results.add(row | said)
        if said["failed"]:
            sys.exit("a job failed")
    print(table(results.rows))


if __name__ == "__main__":
    main()
