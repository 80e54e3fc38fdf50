"""What a load test found: a line of its ledger, and the table that is printed."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from optkit.costs.traffic import Traffic
from optkit.serving.loadtest.measuring import Measured
from optkit.serving.loadtest.predicting import LEVELS

FORMAT = 1
LEDGER = "loadtest.jsonl"


def row(url: str, traffic: Traffic, measured: Measured, predicted: Mapping[str, Any] | None) -> dict[str, Any]:
    """A line of the ledger: percentiles, what was predicted, and every latency and lag in ms."""
    sent = measured.sent
    answered = sent.answered
    every = np.where(np.isnan(sent.latency), math.inf, sent.latency)  # as the prediction counts lost requests
    levels = {f"p{100 * level:.0f}_ms": _quantile(every, level) for level in LEVELS}
    return {
        "format": FORMAT,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "url": url,
        "traffic": traffic.name,
        "requests": len(traffic),
        "seconds": traffic.seconds,
        "rate": traffic.rate,
        "answered": answered.size,
        "answered_rate": answered.size / max(sent.seconds, traffic.seconds),
        "outcomes": dict(sent.outcomes),
        **levels,
        "lag_p50_ms": _quantile(sent.lag, 0.5),
        "lag_p99_ms": _quantile(sent.lag, 0.99),
        "lag_max_ms": 1e3 * float(sent.lag.max()),
        "client_bound": sent.client_bound,
        "replicas": [[round(when, 1), number] for when, number in measured.replicas],
        "predicted": None if predicted is None else dict(predicted),
        "about": dict(measured.about),
        "latency_ms": [None if math.isnan(x) else round(1e3 * x, 3) for x in sent.latency.tolist()],
        "sent_late_ms": [round(1e3 * x, 3) for x in sent.lag.tolist()],
    }


def _quantile(values: np.ndarray, level: float) -> float | None:
    """In ms; None where it is of requests that were not answered."""
    if not values.size or not math.isfinite(np.quantile(values, level, method="higher")):
        return None
    return 1e3 * float(np.quantile(values, level))


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Adds a line to a ledger."""
    from optkit.core.errors import cannot_write

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
    except OSError as error:
        raise cannot_write(path.parent, error, "out") from error


def table(line: Mapping[str, Any]) -> str:
    """Measured beside predicted, and what must be known of it."""
    predicted = line["predicted"] or {}
    lines = [
        f"{line['requests']} requests in {line['seconds']:.3g} s, {line['rate']:.3g} a second; "
        f"{line['answered']} answered, {line['answered_rate']:.3g} a second",
        f"{'':8}{'measured':>10}{'predicted':>11}{'difference':>12}",
    ]
    for level in (f"p{100 * level:.0f}" for level in LEVELS):
        ours, theirs = line[f"{level}_ms"], predicted.get(f"{level}_ms")
        known = ours is not None and theirs is not None
        apart = f"{100 * (ours / theirs - 1):+.0f}%" if known else "-"
        lines.append(f"{level + ' ms':8}{_number(ours):>10}{_number(theirs):>11}{apart:>12}")
    if front := predicted.get("front"):
        text = f"predicted with {front['alone_ms']:.2g} ms of the web server before the model"
        if len(front["sharing"]) > 1:
            text += f", {front['slower'][-1]:.2g} times as long with {front['sharing'][-1]:.0f} requests in it"
        lines.append(text)
    if line["replicas"] and predicted.get("replicas"):
        off = np.abs(np.array(predicted["replicas"]) - [number for _, number in line["replicas"]])
        equal, near = 100 * (off == 0).mean(), 100 * (off <= 1).mean()
        lines.append(f"replicas as predicted in {equal:.0f}% of the time, within one in {near:.0f}%")
    if failed := {code: n for code, n in line["outcomes"].items() if code != "200"}:
        lines.append("not answered: " + ", ".join(f"{code} ({n})" for code, n in sorted(failed.items())))
    lag = f"sent late by {line['lag_p50_ms']:.2g} ms (p50), {line['lag_p99_ms']:.2g} ms (p99)"
    if line["client_bound"]:
        lag += ": the client was the bottleneck, so these latencies are not the server's alone"
    return "\n".join([*lines, lag]) + "\n"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
