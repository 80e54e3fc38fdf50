"""A worker of a study in a process of its own: ``worker.py URL NAME TRIALS FILE``; each trial takes a moment."""

import sys
import time
from pathlib import Path

from optkit.searches import study


def main(url: str, name: str, trials: int, file: Path) -> None:
    study.HEARTBEAT_S, study.GRACE_S, study.POLL_S = 1, 2, 0.1
    opened = study.open_study(url, name, 2, {"of": "a test"})

    def evaluate(trial):
        x = trial.suggest_float("x", 0, 1)
        with file.open("a") as log:
            log.write(f"{trial.number}\n")
        time.sleep(0.3)
        return x, 1 - x

    study.take_part(opened, evaluate, trials=trials, seconds=None, sampler="tpe", seed=0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
