"""What a search finds beside as many random trials and beside the recipe as it is written, over seeds.

    python -m scripts.search_bench RECIPE [KEY=VALUE] [--seeds 0 1 2] [--trials 30] [--max-drop 0.5] [--results FILE]

Each seed trains a baseline of its own. The table has the volumes that the trials within the limits dominate on
validation, how long all trials took, and the winner's speedup and loss on test. The same command continues.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import optkit
from optkit.core.environment import environment
from optkit.core.errors import StageError
from optkit.core.ledger import SEARCH_NAME
from optkit.core.logs import Messages
from optkit.searches.front import dominates
from optkit.searches.goal import Goal
from optkit.searches.search import SEARCHES, Search
from optkit.searches.trial import Figures
from scripts.results import Results, machine, machines

LATENCY = Goal(("latency",))


def row_of(seed: int, result: Mapping[str, Any]) -> dict[str, Any]:
    """What one search and its control found."""
    winner = next((trial for trial in result["front"] if trial["number"] == result["winner"]), None)
    written = LATENCY.point(Figures(**result["written"]))
    kept = [LATENCY.point(Figures(**trial["figures"])) for trial in result["trials"] if trial["within"]]
    return {
        "seed": seed,
        "volumes": result["hypervolume"],
        "dominates_written": any(dominates(point, written) for point in kept),
        "seconds": {
            name: sum(trial["seconds"] or 0.0 for trial in result[key])
            for name, key in (("search", "trials"), ("random", "control"))
        },
        "winner": winner
        and {key: winner["test"][key] for key in ("speedup", "speedup_ci", "loss", "loss_ci", "caveat")},
        "made_again": result["stages"]["made_again"],
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """One line for each seed, and how often the search covered more than its control."""
    lines = [
        "| seed | volume: search | random | as written | search dominates it | seconds: search | random "
        "| winner, times as fast | its loss on test |",
        "|---|" + "---:|" * 8,
    ]
    for row in sorted(rows, key=lambda row: row["seed"]):
        volumes = [f"{row['volumes'].get(name, 0.0):.4f}" for name in ("search", "random", "written")]
        seconds = [f"{row['seconds'][name]:.0f}" for name in ("search", "random")]
        won = row["winner"]
        speed = "none" if won is None else f"{won['speedup']:.2f}{'†' if won['caveat'] else ''}"
        loss = "" if won is None else f"{won['loss']:+.4f}"
        cells = [row["seed"], *volumes, "yes" if row["dominates_written"] else "no", *seconds, speed, loss]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    more = sum(row["volumes"].get("search", 0.0) > row["volumes"].get("random", 0.0) for row in rows)
    ends = sum(row["dominates_written"] for row in rows)
    again = sum(row["made_again"] for row in rows)
    said = (
        f"The search covered more than as many random trials for {more} of {len(rows)} seeds, and dominated the recipe "
        f"as written for {ends}. Stages that were made again: {again}."
    )
    return "\n".join([*lines, "", said, "", *machines(rows, "seed")])


def main() -> None:
    """Search where rows are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--max-drop", type=float)
    parser.add_argument("--space")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path)
    args = parser.parse_intermixed_args()
    Messages().begin()
    settings = {"recipe": Path(args.recipe).stem, "trials": args.trials, "max_drop": args.max_drop}
    settings |= {"overrides": args.overrides}
    results = Results(args.results, settings, "search_bench")
    for seed in args.seeds:
        if results.has(seed=seed):
            continue
        name = f"search_bench-{settings['recipe']}-{seed}"
        folder = args.out / SEARCHES / name
        try:
            optkit.search(
                args.recipe, *args.overrides, f"out={args.out}", f"seed={seed}", trials=args.trials,
                max_drop=args.max_drop, space=args.space, control="random", study=name,
            )  # fmt: skip
        except StageError:  # nothing keeps the limits: a result, too
            if not (folder / SEARCH_NAME).is_file():
                raise
        results.add(
            row_of(seed, Search(folder).result) | {"machine": machine(environment(torch.get_num_threads(), ()))}
        )
    if results.rows:
        print(table(results.rows))


if __name__ == "__main__":
    main()
