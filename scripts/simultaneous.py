"""Runs at the same time that share a store, and runs that are killed: nothing fails, and nothing is made twice.

    python -m scripts.simultaneous [--pairs 20] [--kills 20] [--seed 0]

Pairs start together, in turn: two recipes that share their first stage, the same command twice, and a sweep (``-m``) of
two values under Hydra's joblib launcher with two workers, where that is installed. Kills (SIGKILL) hit one of two
processes that share a store, at a random moment; the same command is started again. All of it happens in a temporary
folder. Checked are exit codes, how often each stage was made (in pairs), the keys of the ledgers, the answers against
those of undisturbed runs, and what is left in the store. The last line is JSON; exit code 1 if anything is off.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from optkit.core import ledger

RECIPE = """
defaults:
  - optkit
  - stage@stages.train: train
  - stage@stages.mask: prune/magnitude
  - stage@stages.tune: train
  - _self_
  - override model: mlp
  - override engine@engines.inductor: eager
name: pair
chain: [train, mask, tune]
model: {widths: [64]}
task: {image_size: 8}
stages:
  train: {trainer: {epochs: 20, batch_size: 32}}
  tune: {trainer: {epochs: 5, batch_size: 32}}
threads: 1
measure: {batch_sizes: [8], seconds: 0.1, memory: false}
"""
AMOUNTS = ("0.3", "0.6")
UNFINISHED = re.compile(r"\.\w{16}\.")
MADE = re.compile(r"stage (\w+): done in")
TIMEOUT_S = 300
Answers = dict[str, dict[str, object]]


@dataclass
class Findings:
    """What was off, counted."""

    failures: int = 0
    made_twice: int = 0
    recorded_twice: int = 0
    records_missing: int = 0
    other_accuracies: int = 0
    left_over: int = 0
    details: list[str] = field(default_factory=list)

    def add(self, kind: str, number: int, detail: str) -> None:
        """Counts what is off, if anything is."""
        if number:
            setattr(self, kind, getattr(self, kind) + number)
            self.details.append(f"{kind}: {detail}")

    @property
    def clean(self) -> bool:
        """Whether nothing was off."""
        return not self.details


class Trial:
    """Pairs and kills in a folder.

    Args:
        home: the folder.
        seed: of the moments of the kills.
    """

    def __init__(self, home: Path, seed: int):
        self.home, self.random, self.found = home, random.Random(seed), Findings()
        (home / "pair.yaml").write_text(RECIPE)
        self.environment = os.environ | {"OPTKIT_CACHE": str(home / "cache"), "HF_HUB_OFFLINE": "1"}
        self.seconds, self.expected = 0.0, self._undisturbed()

    def pair(self, number: int, kinds: Sequence[str]) -> None:
        """One simultaneous start, of a kind that is next in turn."""
        kind, out = kinds[number % len(kinds)], f"pair-{number}"
        if kind == "sweep":
            sweep = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
            started = [self._start(out, ",".join(AMOUNTS), sweep)]
        else:
            started = [self._start(out, amount) for amount in (AMOUNTS if kind == "prefix" else AMOUNTS[:1] * 2)]
        texts = [self._end(process, f"{kind} {number}") for process in started]
        made = len(MADE.findall("".join(texts)))
        stages = len(list((self.home / out / "store").glob("*/variant.json"))) - 1  # the model is no stage
        self.found.add("made_twice", abs(made - stages), f"{kind} {number}: {made} stages made, {stages} in the store")
        self._check(out, AMOUNTS[:1] if kind == "same" else AMOUNTS, f"{kind} {number}")

    def kill(self, number: int) -> None:
        """Two processes that share a store; one is killed at some moment, and its command started again."""
        out = f"kill-{number}"
        started = [self._start(out, amount) for amount in AMOUNTS]
        time.sleep(self.random.uniform(0.2, 1.0) * self.seconds)
        hit = self.random.randrange(2)
        started[hit].kill()
        started[hit].communicate()
        started[hit] = self._start(out, AMOUNTS[hit])
        for process in started:
            self._end(process, f"kill {number}")
        self._check(out, AMOUNTS, f"kill {number}")

    def _undisturbed(self) -> Answers:
        started = time.monotonic()
        alone = [self._start(f"alone-{amount}", amount) for amount in AMOUNTS]
        for process in alone:
            self._end(process, "alone")
        self.seconds = time.monotonic() - started
        return {mask: answers for amount in AMOUNTS for mask, answers in self._answers(f"alone-{amount}").items()}

    def _start(self, out: str, amount: str, more: Sequence[str] = ()) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "optkit", "run", "pair.yaml", f"out={out}", f"stages.mask.amount={amount}"]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [*command, *more], cwd=self.home, env=self.environment, stdout=pipe, stderr=pipe, text=True
        )

    def _end(self, process: subprocess.Popen[str], what: str) -> str:
        """What a process wrote to standard error."""
        try:
            errors = process.communicate(timeout=TIMEOUT_S)[1]
        except subprocess.TimeoutExpired:
            process.kill()
            errors = f"not done after {TIMEOUT_S} s"
        last = (errors.strip().splitlines() or [""])[-1]
        self.found.add("failures", process.returncode != 0, f"{what}: exit code {process.returncode}: {last}")
        return errors

    def _answers(self, out: str) -> Answers:
        """For each run folder, named by its amount: which examples each step answered rightly."""
        found = {}
        for folder in sorted((self.home / out).glob("pair-*")):
            records = ledger.read(folder)
            amount = next(str(r.params["amount"]) for r in records if r.stage == "mask")
            found[amount] = {r.stage: [m.raw for m in r.measurements if m.name == "accuracy"] for r in records}
        return found

    def _check(self, out: str, amounts: Sequence[str], what: str) -> None:
        answers: Answers = {}
        for folder in (self.home / out).glob("pair-*"):
            keys = [record.key for record in ledger.read(folder)]
            self.found.add("recorded_twice", len(keys) - len(set(keys)), f"{what}: {keys}")
        try:
            answers = self._answers(out)
        except StopIteration as error:
            self.found.add("records_missing", 1, f"{what}: {error}")
        expected = {amount: self.expected[amount] for amount in amounts}
        self.found.add("other_accuracies", answers != expected, f"{what}: other answers than alone")
        store = self.home / out / "store"
        left = [path.name for path in store.iterdir() if path.suffix == ".partial" or UNFINISHED.match(path.name)]
        self.found.add("left_over", len(left), f"{what}: {', '.join(left)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the trial; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    sweeps = importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is not None
    kinds = ["prefix", "same", *(["sweep"] if sweeps else [])]
    with tempfile.TemporaryDirectory(prefix="optkit-simultaneous-") as home:
        trial = Trial(Path(home), options.seed)
        for number in range(options.pairs):
            trial.pair(number, kinds)
            print(f"pair {number + 1} of {options.pairs}: {len(trial.found.details)} findings", flush=True)
        for number in range(options.kills):
            trial.kill(number)
            print(f"kill {number + 1} of {options.kills}: {len(trial.found.details)} findings", flush=True)
    for detail in trial.found.details:
        print(detail)
    counts = {name: value for name, value in vars(trial.found).items() if name != "details"}
    print(json.dumps({"pairs": options.pairs, "kinds": kinds, "kills": options.kills, **counts}))
    return 0 if trial.found.clean else 1


if __name__ == "__main__":
    sys.exit(main())
