"""A sweep under joblib whose processes are killed at random moments: nothing is lost, and nothing is done twice.

    python -m scripts.sweep_kills [--jobs 12] [--workers 2] [--kills 30] [--seed 0]

Each round starts the same command, and kills (SIGKILL) a process of it at a random moment: a worker, or the process
that started the sweep. When there were enough kills, the command runs to its end. Checked are its exit code, the states
in ``sweep.json``, the ledgers (every variant once, none missing), and the answers to every test example, against those
of a sweep that nobody disturbs. The last line is JSON; exit code 1 if anything is off.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from optkit.core import ledger
from optkit.sweep.state import State, SweepFolder

RECIPE = """
defaults:
  - optkit
  - stage@stages.train: train
  - stage@stages.mask: prune/magnitude
  - _self_
  - override model: mlp
  - override engine@engines.inductor: eager
name: tiny
chain: [train, mask]
model: {widths: [16]}
task: {image_size: 8, limit: 64}
stages: {train: {trainer: {epochs: 1}}}
threads: 1
measure: {batch_sizes: [4], seconds: 0.05, memory: false}
"""
LONGER = "model.widths=[64] task.limit=null stages.train.trainer.epochs=10 stages.train.trainer.batch_size=32".split()
TIMEOUT_S = 900
CYCLE_S = 40.0  # within it a kill comes, counted from the start of a round


def start(home: Path, out: str, jobs: int, workers: int) -> subprocess.Popen[bytes]:
    """Starts the sweep, or goes on with it."""
    values = ",".join(map(str, range(jobs)))
    command = [sys.executable, "-m", "optkit", "run", "tiny.yaml", "--quiet", f"out={out}", "sweep=mine", "-m",
               f"seed={values}", *LONGER, "hydra/launcher=parallel", f"hydra.launcher.n_jobs={workers}"]  # fmt: skip
    environment = os.environ | {"OPTKIT_CACHE": str(home / "cache"), "HF_HUB_OFFLINE": "1"}
    with open(home / f"{out}.log", "a") as said:
        return subprocess.Popen(command, cwd=home, env=environment, stdout=said, stderr=said)


def kill_one(process: subprocess.Popen[bytes], chance: random.Random) -> None:
    """Kills a random process of a sweep; of one that lost its parent the rest are ended."""
    around = psutil.Process(process.pid)
    family = [around, *around.children(recursive=True)]
    victim = chance.choice(family)
    with contextlib.suppress(psutil.NoSuchProcess):
        victim.kill()
    if victim.pid == process.pid:
        process.wait()
        for orphan in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                orphan.kill()


def answers(home: Path, out: str) -> dict[str, Any]:
    """What each run of a sweep answered, by run and variant."""
    found = {}
    for folder in sorted((home / out).glob("tiny-*")):
        for record in ledger.read(folder):
            found[f"{folder.name} {record.step}"] = [m.raw for m in record.primary]
    return found


def findings(home: Path, out: str, jobs: int, expected: dict[str, Any]) -> list[str]:
    """What is off after a sweep has ended."""
    found = []
    sweep = SweepFolder(home / out / "sweeps" / "mine").read()
    if sweep.count(State.FINISHED) != jobs:
        found.append(f"{sweep.count(State.FINISHED)} of {jobs} jobs are finished")
    for folder in (home / out).glob("tiny-*"):
        keys = [record.key for record in ledger.read(folder)]
        if len(keys) != len(set(keys)):
            found.append(f"{folder.name}: recorded twice")
        if ledger.unmeasured(folder):
            found.append(f"{folder.name}: not all is measured")
    if expected and answers(home, out) != expected:
        found.append("other answers than those of the undisturbed sweep")
    left = [path.name for path in (home / out / "store").iterdir() if path.suffix == ".partial" or path.name[0] == "."]
    found.extend(f"left in the store: {name}" for name in left if name != ".locks")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the trial; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    chance, kills, rounds = random.Random(given.seed), 0, 0
    with tempfile.TemporaryDirectory(prefix="optkit-sweep-") as name:
        home = Path(name)
        (home / "tiny.yaml").write_text(RECIPE)
        begin = time.monotonic()
        code = start(home, "alone", given.jobs, given.workers).wait(timeout=TIMEOUT_S)
        found = [f"the undisturbed sweep ended with {code}"] if code else []
        found += findings(home, "alone", given.jobs, {})
        expected, alone_s = answers(home, "alone"), time.monotonic() - begin
        while kills < given.kills:
            # a sweep that is done is started under another name, until there were enough kills
            out = f"killed-{rounds}"
            rounds += 1
            done = False
            while not done and kills < given.kills:
                process = start(home, out, given.jobs, given.workers)
                while kills < given.kills:
                    try:
                        process.wait(timeout=chance.uniform(0.05, 1.0) * min(CYCLE_S, alone_s))
                        break
                    except subprocess.TimeoutExpired:
                        kill_one(process, chance)
                        kills += 1
                        print(f"kill {kills} of {given.kills}", flush=True)
                done = process.wait(timeout=TIMEOUT_S) == 0
            last = 0 if done else start(home, out, given.jobs, given.workers).wait(timeout=TIMEOUT_S)
            if last:
                found.append(
                    f"{out}: the last command ended with {last}: see {(home / f'{out}.log').read_text()[-500:]}"
                )
            found += [f"{out}: {one}" for one in findings(home, out, given.jobs, expected)]
    for one in found:
        print(one)
    print(json.dumps({"jobs": given.jobs, "kills": kills, "sweeps": rounds, "findings": len(found)}))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
