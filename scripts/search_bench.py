"""What a search finds beside as many random trials and beside the recipe as it is written, over seeds.

    python scripts/search_bench.py RECIPE [OVERRIDES] [--seeds 5] [--trials 30] [--max-drop 0.5]

Each seed trains a baseline of its own. The table has the volumes that the trials within the limits dominate on
validation, and the winner's speedup and loss on test. The same command continues.
"""

from __future__ import annotations

import argparse
import logging

import optkit
from optkit.core.errors import StageError
from optkit.core.logs import Messages


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--max-drop", type=float)
    parser.add_argument("--space")
    args = parser.parse_args()
    Messages().begin()
    print("| seed | search | random | as written | winner, times as fast | its loss on test |\n|---|" + "---:|" * 5)
    for seed in range(args.seeds):
        try:
            done = optkit.search(
                args.recipe, *args.overrides, f"seed={seed}", trials=args.trials, max_drop=args.max_drop,
                space=args.space, control="random",
            )  # fmt: skip
        except StageError as error:
            logging.getLogger("optkit").warning("seed %d: %s", seed, error)
            continue
        winner = next(trial for trial in done.result["front"] if trial["number"] == done.result["winner"])
        volumes = " | ".join(f"{done.result['hypervolume'][name]:.4g}" for name in ("search", "random", "written"))
        print(f"| {seed} | {volumes} | {winner['test']['speedup']:.2f} | {winner['test']['loss']:.4f} |", flush=True)


if __name__ == "__main__":
    main()
