"""Latencies that `optkit cost` predicts beside those of a real server, and the replicas of a day beside the predicted.

    optkit run quickstart 'measure.batch_sizes=[1,8]'
    python -m scripts.serving_bench RUN --results FILE [--trace FILE.csv]
    python -m scripts.serving_bench RUN --results FILE --day 600

The run's baseline and the last variant of its chain are served one after the other by ``optkit serve``'s own server,
each from a fresh Ray. The traffic is Poisson's, and a part of the trace, at 20, 40 and 60% of the rate at which the
server answers while 2 to 16 requests are always under way. ``--day`` sends one day's shape within so many
seconds to a server that scales: its periods are shortened, too, but replicas start as slowly as ever. It needs the
extra ``serve``, and a quiet machine of which the client takes a part.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import torch

from optkit.core.environment import environment
from optkit.core.interruption import Ending, Interruption
from optkit.costs.policies import Autoscaled
from optkit.costs.specs import parse_traffic
from optkit.costs.traffic import DAY, HOUR, Traffic
from optkit.serving import loadtest
from optkit.serving.plan import Plan
from optkit.serving.serving import prepared
from scripts.results import Results, machine

SHARES = (0.2, 0.4, 0.6)
START_S = 120.0
TRACE = "trace"
SCALING = Autoscaled(
    target=0.5, min_replicas=1, max_replicas=4, sync_s=5.0, tolerance=0.1, up_window_s=0.0, down_window_s=20.0
)
EVERY_S = "1"  # from push to push of the metric by which Ray scales; its default is made for minutes


def serve_in_process(folder: Path, plan: Plan, port: int) -> None:
    """Serves until it is terminated."""
    from optkit.serving.server import serve_plan

    os.environ["RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S"] = EVERY_S
    os.environ["RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S"] = EVERY_S
    Ending()
    try:
        serve_plan(folder, plan, "127.0.0.1", port, 2**20, ())
    except Interruption:
        sys.exit(0)


@contextmanager
def served(variant: Path, engine: str, changes: dict[str, Any], scaling: Autoscaled | None) -> Iterator[str]:
    """The address of a server of a variant."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        model, plan = prepared(variant, engine, changes, Path(folder) / "model")
        plan = replace(plan, scaling=scaling)
        process = multiprocessing.get_context("spawn").Process(target=serve_in_process, args=(model, plan, port))
        process.start()
        url = f"http://127.0.0.1:{port}"
        try:
            _wait(url, process)
            yield url
        finally:
            process.terminate()
            process.join(60)


def _wait(url: str, process: multiprocessing.process.BaseProcess) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.is_alive():
        try:
            with urlopen(f"{url}/healthz", timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.5)
    raise SystemExit("the server did not start")


def measured(run: Path, url: str, traffic: Traffic) -> dict[str, Any]:
    """A load test's row, without the latencies of single requests."""
    found = loadtest.loadtest(url, traffic, unloaded=True)
    row = loadtest.row(url, traffic, found, loadtest.predict(run, found, traffic))
    print(loadtest.table(row), flush=True)
    return {key: value for key, value in row.items() if key not in ("url", "latency_ms", "sent_late_ms", "about")}


def capacity(url: str) -> float:
    """Requests a second of a server that is always busy."""
    found = loadtest.loadtest(url, parse_traffic("poisson:rate=20/s,hours=0.0003"), unloaded=True)
    assert found.unloaded is not None
    return max(rate for _, rate in found.unloaded.busy)


def traffic_of(kind: str, trace: Path | None, rate: float, seconds: float) -> Traffic:
    """Poisson's, or the middle of the trace, at a rate."""
    if kind == TRACE:
        whole = parse_traffic(f"{trace}:rate={rate}/s")
        return whole.window((whole.seconds - seconds) / 2, seconds)
    return parse_traffic(f"poisson:rate={rate}/s,hours={seconds / HOUR}")


def day_of(rate: float, seconds: float) -> Traffic:
    """The requests of a day, within so many seconds."""
    day = parse_traffic(f"daily:rate={rate * seconds / DAY}/s,hours=24")
    return Traffic("a day", day.arrivals * (seconds / DAY), seconds)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Measured beside predicted."""
    lines = [
        "| variant | traffic | requests/s | busy | p50 ms, measured | predicted | p99 ms, measured | predicted |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        predicted = row["predicted"]
        cells = [row["variant"], row["kind"], f"{row['rate']:.0f}", f"{100 * row['busy']:.0f}%"]
        for level in ("p50_ms", "p99_ms"):
            ours, theirs = row[level], predicted[level]
            cells += [f"{ours:.1f}", f"{theirs:.1f} ({100 * (theirs / ours - 1):+.0f}%)"]
        lines.append(f"| {' | '.join(cells)} |{' †' if row['client_bound'] else ''}")
    for row in rows:
        if row["replicas"]:
            ours, theirs = [number for _, number in row["replicas"]], row["predicted"]["replicas"]
            off = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
            equal, near = (100 * sum(x <= most for x in off) / len(off) for most in (0, 1))
            lines += ["", f"Replicas of {row['variant']} over a day of {row['seconds']:.0f} s, from {min(ours)} to "]
            lines[-1] += f"{max(ours)}: as predicted in {equal:.0f}% of the time, within one in {near:.0f}%."
    return "\n".join([*lines, "", rows[0]["machine"] if rows else ""])


def main() -> None:
    """Measures what is missing from the results, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--max-batch", type=int, default=1)
    parser.add_argument("--max-wait", type=float, default=0.0, help="ms")
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--seconds", type=float, default=40.0, help="of each traffic")
    parser.add_argument("--day", type=float, help="seconds of a day; only this is measured")
    parser.add_argument("--rate", type=float, default=40.0, help="the day's, requests a second on average")
    parser.add_argument("--results", type=Path, required=True)
    args = parser.parse_args()
    ending = Ending()
    try:
        measure(args)
    except Interruption as error:
        sys.exit(ending.farewell(error))  # with the server


def measure(args: argparse.Namespace) -> None:
    """Adds what is missing, and prints the table."""
    said = machine(environment(torch.get_num_threads(), (args.engine,)))
    numbers = {"max_batch": args.max_batch, "max_wait_ms": args.max_wait, "threads": 1}
    results = Results(args.results, {"engine": args.engine, "seconds": args.seconds, "machine": said}, "serving_bench")
    folders = sorted((args.run / "variants").iterdir(), key=lambda path: int(path.name.partition("-")[0]))
    kinds = ["Poisson", *([TRACE] if args.trace else [])]
    for folder in (folders[0], folders[-1]):
        wanted = ["a day"] if args.day else kinds
        left = [kind for kind in wanted if not results.has(variant=folder.name, kind=kind, **numbers)]
        if not left:
            continue
        scaling = SCALING if args.day else None
        with served(folder, args.engine, {**numbers, "replicas": 1}, scaling) as url:
            most = capacity(url)
            for kind in left:
                rates = [args.rate] if args.day else [share * most for share in SHARES]
                for rate in rates:
                    traffic = day_of(rate, args.day) if args.day else traffic_of(kind, args.trace, rate, args.seconds)
                    row = {"variant": folder.name, "kind": kind, **numbers, "busy": traffic.rate / most}
                    results.add(row | measured(args.run, url, traffic) | {"machine": said})
    print(table(results.rows))


if __name__ == "__main__":
    main()
