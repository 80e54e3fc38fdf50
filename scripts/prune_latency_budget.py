"""Is a latency budget met? Cuts by measured latency, judged again afterwards by sessions compiled anew.

    python scripts/prune_latency_budget.py [--models resnet20 ...] [--engines eager inductor] [--amounts 0.3 0.5]
        [--threads 2] [--results FILE]

For each model, engine and amount: the latency asked for, what the search reports, and the ratio that a
second, independent run of dense and cut model in turn gives. Weights are random: they decide which channels go, not how
long the rest takes. Rows are appended to FILE as they come; what is there is not done again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from optkit.core.errors import UserError
from optkit.core.statistics import ratio_of_medians
from optkit.core.variant import Variant
from optkit.engines import ENGINES
from optkit.measure.latency import interleaved
from optkit.models import ResNetCIFAR
from optkit.prune import prune_structured
from scripts.results import Results

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet20": (lambda: ResNetCIFAR(20), (1, 3, 32, 32)),
    "resnet20_x32": (lambda: ResNetCIFAR(20), (32, 3, 32, 32)),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, (1, 3, 224, 224)),
    "resnet18": (torchvision.models.resnet18, (1, 3, 224, 224)),
}
SECONDS = 4.0


def judge(dense: nn.Module, cut: nn.Module, engine: str, inputs: tuple[torch.Tensor, ...]) -> dict[str, Any]:
    """The ratio of latencies of two models, timed in turn."""
    variant = Variant("", None, frozenset({"float"}), {})
    sessions = {
        name: ENGINES[engine]().compile(m.eval(), variant, inputs) for name, m in (("dense", dense), ("cut", cut))
    }
    series = interleaved(sessions, inputs, SECONDS, seed=1)
    found = ratio_of_medians(series["cut"].samples, series["dense"].samples)
    return {"judged": found.value, "judged_ci": found.ci}


def one(name: str, engine: str, amount: float) -> dict[str, Any]:
    """Prune and judge."""
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model, inputs = make().eval(), (torch.randn(shape),)
    start = time.perf_counter()
    row: dict[str, Any] = {"model": name, "engine": engine, "amount": amount, "asked": 1 - amount}
    try:
        pruned = prune_structured(model, inputs, amount=amount, budget="latency", engine=engine)
    except UserError as error:
        return row | {"refused": error.message}
    row["seconds"] = time.perf_counter() - start
    return row | judge(model, pruned.module, engine, inputs) | pruned.plan.facts


def table(rows: list[dict[str, Any]]) -> str:
    """One line for each cut, ratios of cut to dense latency in percent."""
    lines = [
        "| model | engine | dense, ms | sum of the table, ms | asked | search | judged afterwards | off by | MACs left"
        " | rounds | seconds (of them the table) |",
        "|---|---|---:|---:|---:|---:|---|---:|---:|---:|---|",
    ]
    for row in rows:
        if "refused" in row:
            lines.append(
                f"| {row['model']} | {row['engine']} | | | {row['asked']:.0%} | refused: {row['refused']} |" + " |" * 5
            )
            continue
        low, high = (f"{100 * x:.1f}" for x in row["judged_ci"])
        cells = [
            row["model"], row["engine"], f"{row['latency_before_ms']:.3g}", f"{row['latency_table_ms']:.3g}",
            f"{row['asked']:.0%}", f"{row['latency_ratio']:.1%}", f"{row['judged']:.1%} [{low}, {high}]",
            f"{row['judged'] / row['asked'] - 1:+.1%}", f"{row['macs_after'] / row['macs_before']:.0%}",
            str(row["latency_rounds"]), f"{row['seconds']:.0f} ({row['latency_table_s']:.0f})",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing from the results, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["eager", "inductor"])
    parser.add_argument("--amounts", nargs="+", type=float, default=[0.3, 0.5])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = Results(args.results, {"threads": args.threads}, "prune_latency_budget")
    for name in args.models:
        for engine in args.engines:
            for amount in args.amounts:
                if not results.has(model=name, engine=engine, amount=amount):
                    results.add(one(name, engine, amount))
    print(table(results.rows))


if __name__ == "__main__":
    main()
