"""A recipe's training step by one process on all cores, and by several that share the cores; in turns.

    python -m scripts.processes_speed [--cases images tokens] [--processes 2] [--rounds 12] [--steps 12]
        [--threads 2] [--results FILE]

The cases are those of `scripts.training_bench`. The batch is the same whatever the number of processes, so each of
several handles a part of it, with its part of the threads. ``ratio`` is one process's median time of a step over
theirs, with its 95% interval over rounds: above 1, several are faster. ``busy`` is the share of the machine's
processor time that others took; rows with more than 0.1 are left out of the table.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from optkit.core.allocator import keep_freed_memory
from optkit.core.environment import environment
from optkit.core.processes import joined
from optkit.core.statistics import ratio_of_medians
from optkit.core.task import TOKENS
from optkit.core.threads import use_threads
from scripts.generation_bench import BUSY, share_besides
from scripts.results import Results, machine
from scripts.training_bench import RECIPES, SEED, WARM_UP, Case, build, ours


def steps_of(case: Case) -> list[float]:
    """Seconds of each step of one call, without the first ones."""
    found: list[float] = np.diff(ours(case)[0])[WARM_UP:].tolist()
    return found


def work(name: str, steps: int, threads: int) -> None:
    """One of several processes: a call for each line that it reads; the first one writes its times."""
    keep_freed_memory()
    with joined() as processes, use_threads(threads):
        case = build(name, steps, "wall")
        for _ in sys.stdin:
            found = steps_of(case)
            if processes.rank == 0:
                print(json.dumps(found), flush=True)


@contextmanager
def started(args: argparse.Namespace, name: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that wait for lines, with the variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = max(args.threads // args.processes, 1)
    command = [sys.executable, "-m", "scripts.processes_speed", "--work", name]
    command += ["--steps", str(args.steps), "--threads", str(threads)]
    given = {"WORLD_SIZE": args.processes, "LOCAL_WORLD_SIZE": args.processes, "OMP_NUM_THREADS": threads}
    given |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCH_CPP_LOG_LEVEL": "ERROR"}
    found = []
    for rank in range(args.processes):
        own = os.environ | {key: str(value) for key, value in (given | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        found.append(subprocess.Popen(command, env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    try:
        yield found
        for one in found:  # all of them first: each waits for the others before it ends
            assert one.stdin is not None
            one.stdin.close()
        for one in found:
            one.wait()
    finally:
        for one in found:
            one.kill()


def together(workers: Sequence[subprocess.Popen[str]]) -> list[float]:
    """`steps_of` by several processes."""
    for one in workers:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    assert workers[0].stdout is not None
    found: list[float] = json.loads(workers[0].stdout.readline())
    return found


def bench(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """One case."""
    case = build(name, args.steps, "wall")
    with started(args, name) as workers:
        loops = {"one": lambda: steps_of(case), "several": lambda: together(workers)}
        for loop in loops.values():
            loop()  # warms up
        times: dict[str, list[list[float]]] = {kind: [] for kind in loops}
        own = [psutil.Process(), *(psutil.Process(one.pid) for one in workers)]
        before, mine = psutil.cpu_times(), sum(map(seconds_of, own))
        order, shuffled = list(loops), random.Random(SEED)
        for _ in range(args.rounds):
            shuffled.shuffle(order)
            for kind in order:
                times[kind].append(loops[kind]())
        busy = share_besides(before, sum(map(seconds_of, own)) - mine)
    samples = {kind: np.array(found) for kind, found in times.items()}
    inputs, _ = next(case.batches())
    count = inputs.numel() if case.task.output_kind == TOKENS else len(inputs)
    ratio = ratio_of_medians(samples["one"], samples["several"])
    return {
        "case": name, "precision": case.precision, "batch_size": case.trainer.batch_size, "processes": args.processes,
        "busy": round(busy, 3), "quiet": busy <= BUSY,
        "a_second": {kind: round(count / float(np.median(found)), 1) for kind, found in samples.items()},
        "ratio": {"value": round(ratio.value, 4), "ci": ratio.ci and [round(x, 4) for x in ratio.ci]},
    }  # fmt: skip


def seconds_of(process: psutil.Process) -> float:
    """Processor time that a process has taken."""
    times = process.cpu_times()
    return float(times.user + times.system)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """What one process trains in a second, and several."""
    several = rows[0]["processes"]
    lines = [f"| case | precision | one process | {several} processes | ratio |", "|---|---|---:|---:|---:|"]
    for row in rows:
        interval = "" if row["ratio"]["ci"] is None else " [{:.3f}, {:.3f}]".format(*row["ratio"]["ci"])
        cells = [f"{row['a_second'][kind]:,.0f}" for kind in ("one", "several")]
        cells += [f"{row['ratio']['value']:.3f}{interval}"]
        lines.append(
            f"| {row['case']} a second | {row['precision']} | {' | '.join(cells if row['quiet'] else ['busy'] * 3)} |"
        )
    return "\n".join([*lines, "", f"Above 1, {several} processes are faster; 95% intervals. {rows[0]['machine']}"])


def main() -> None:
    """Prints a line for each case, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=12, help="of each call; all but the first few are timed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of all processes together")
    parser.add_argument("--results", type=Path, help="a file that keeps the rows for the documents")
    parser.add_argument("--work", choices=list(RECIPES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work, args.steps, args.threads)
        return
    keep_freed_memory()
    kept = Results(args.results, {"rounds": args.rounds, "steps": args.steps}, "processes_speed")
    said = machine(environment(args.threads, ()))
    with use_threads(args.threads):
        for name in args.cases:
            row = bench(args, name)
            kept.add(row | {"machine": said})
            print(row, flush=True)
    print(table(kept.rows))


if __name__ == "__main__":
    main()
