"""A recipe by one process and by several, for some seeds each: the same quality, on as many examples.

    python -m scripts.processes_bench RECIPE [OVERRIDE ...] [--seeds 5] [--processes 2] [--results FILE.jsonl]

Each number of processes makes the variants of all seeds in one command, with a store of its own: by ``python``, or by
``torchrun --nproc-per-node N``. Nothing is timed. The last variant is evaluated in eager mode on the whole test split,
by the task's first metric. ``difference`` is the mean over the seeds of several processes' figure less one's, with its
95% interval (Student's, paired by seed). ``spread`` is the standard deviation of one process's figures over the seeds.
With ``--results`` rows are kept in a file, and what it holds is not made again; the table is of all of its rows.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student

from optkit.core.processes import joined
from scripts.results import Results, machine, machines

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def make(recipe: str, overrides: Sequence[str], seeds: Sequence[int], rows: Path) -> None:
    """Makes and evaluates the last variant of each seed, in the processes that were started; appends rows to a file."""
    from optkit.launch import launch

    with joined() as processes, tempfile.TemporaryDirectory() as folder:
        out = processes.first(lambda: folder)
        for seed in seeds:
            given = [f"seed={seed}", f"out={out}", "measure=later", *overrides]
            launch(recipe, given, lambda cfg, seed=seed: run_and_evaluate(cfg, seed, overrides, rows))  # type: ignore[misc]


def run_and_evaluate(cfg: Any, seed: int, overrides: Sequence[str], rows: Path) -> None:
    """One run; the first process evaluates."""
    from optkit.core.artifact import open_artifact
    from optkit.core.environment import environment
    from optkit.core.processes import current
    from optkit.pipeline import run
    from optkit.recipe.compose import to_recipe
    from optkit.recipe.plan import make_plan

    plan = make_plan(to_recipe(cfg))
    folder = run(plan).folder / "variants" / plan.last.folder

    def evaluate() -> None:
        module, task = open_artifact(folder).module(plan.trusted), plan.recipe.task
        row = {
            "recipe": plan.recipe.name, "overrides": said(overrides), "seed": seed, "processes": of_run,
            "variant": plan.last.name, **quality(module, task),
            "machine": machine(environment(torch.get_num_threads(), ())),
        }  # fmt: skip
        kept(rows).add(row)

    of_run = current().size
    current().first(evaluate)


@torch.no_grad()
def quality(module: torch.nn.Module, task: Any) -> dict[str, Any]:
    """The task's first metric on the test split, and of how many examples it is."""
    from optkit.core.metric import observed, stacked
    from optkit.core.structure import as_float
    from optkit.core.task import rows_at_once

    metric, module = task.metrics[0], module.eval()
    batches = task.batches("test", rows_at_once(task, 64))
    found = stacked([observed(metric, as_float(task.forward(module, batch)), batch) for batch in batches])
    return {"metric": metric.name, "value": metric.value(found), "examples": len(found)}


def said(overrides: Sequence[str]) -> list[str]:
    """Overrides without the folders of this machine."""
    return [re.sub(r"=/.*", "=DIR", override) for override in overrides]


def kept(rows: Path) -> Results:
    """The rows of a file."""
    return Results(rows, {}, "processes_bench")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each recipe, as Markdown."""
    lines = [
        "| recipe | test metric | seeds | one process | spread | several | difference | examples |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        of = {(row["processes"], row["seed"]): row for row in rows if row["recipe"] == recipe}
        several = max(processes for processes, _ in of)
        seeds = sorted(seed for processes, seed in of if processes == several and (1, seed) in of)
        one, more = (np.array([of[count, seed]["value"] for seed in seeds]) for count in (1, several))
        examples = sorted({row["examples"] for row in of.values()})
        change, spread = (more - one).mean(), (more - one).std(ddof=1)
        half = student.ppf(0.975, len(seeds) - 1) * spread / np.sqrt(len(seeds))
        lines.append(
            f"| {recipe} | {of[1, seeds[0]]['metric']} | {len(seeds)} | {one.mean():.4g} | {one.std(ddof=1):.2g} | "
            f"{more.mean():.4g} | {change:+.2g} [{change - half:+.2g}, {change + half:+.2g}] | "
            f"{', '.join(map(str, examples))} |"
        )
    # several processes have fewer threads each
    return "\n".join([*lines, "", *machines([row for row in rows if row["processes"] == 1], "recipe")])


def main() -> None:
    """Makes what is missing, and prints the table of all rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=Path, help="keep rows in this file, and leave out what it holds")
    parser.add_argument("--make", type=int, nargs="+", help=argparse.SUPPRESS)  # these seeds, in a started process
    args = parser.parse_args()
    if args.make is not None:
        make(args.recipe, args.overrides, args.make, args.results)
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = args.results or Path(folder) / "rows.jsonl"
        named = [given.removeprefix("name=") for given in args.overrides if given.startswith("name=")]
        name = named[-1] if named else Path(args.recipe).stem
        for processes in (1, args.processes):
            asked = (processes, name, said(args.overrides))
            done = {
                row["seed"] for row in kept(rows).rows if (row["processes"], row["recipe"], row["overrides"]) == asked
            }
            if todo := [str(seed) for seed in range(args.seeds) if seed not in done]:
                launcher = [] if processes == 1 else [*TORCHRUN, str(processes)]
                command = [sys.executable, *launcher, "-m", "scripts.processes_bench", args.recipe, *args.overrides]
                subprocess.run([*command, "--results", str(rows), "--make", *todo], check=True)
        print(table(kept(rows).rows))


if __name__ == "__main__":
    main()
