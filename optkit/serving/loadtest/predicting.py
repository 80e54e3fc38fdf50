"""What the cost model says of the requests that a server answered."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from optkit.core.errors import UserError
from optkit.costs.traffic import Traffic
from optkit.serving.front import Front
from optkit.serving.loadtest.measuring import Measured
from optkit.serving.plan import Plan

LEVELS = (0.5, 0.95, 0.99)
FRONT_SEED = 1  # another than the model's, whose draws would otherwise go with those of the front


def predict(run: Path, measured: Measured, traffic: Traffic) -> dict[str, Any]:
    """What the cost model says of the same requests to the same deployment, ms.

    Requests pass the server's `Front` first, where it was measured.

    Args:
        run: whose ledger has the service times of the variant that was served.
        measured: with what the server said of itself.
        traffic: the requests.

    Raises:
        UserError: the server does not say what it serves, or the run did not measure it.
    """
    from optkit.core import ledger
    from optkit.costs.policies import Autoscaled, Fixed
    from optkit.costs.replicas import measure_again, replicas_of
    from optkit.costs.simulation import TIMEOUT_S, Batching, simulate

    about = measured.about
    try:
        plan = Plan(
            about["engine"], about["max_batch"], about["max_wait_ms"], about["replicas"], variant=about["variant"]
        )
        scaling = None if about.get("scaling") is None else Autoscaled(**about["scaling"])
    except (KeyError, TypeError) as error:
        raise UserError("the server does not say which variant it serves", key="run", fix="leave --run out") from error
    found = replicas_of(run, ledger.unique(ledger.read(run)))
    same = [one for one in found if (one.record.variant, one.engine) == (plan.variant, plan.engine)]
    if not same:
        raise UserError(f"{run} did not time what is served, on {plan.engine}", key="run", fix=measure_again(run))
    service = same[0].service
    if plan.max_batch > service.sizes[-1]:
        fix = measure_again(run, f"measure.batch_sizes=[{','.join(map(str, (*service.sizes, plan.max_batch)))}]")
        raise UserError(f"batches of {plan.max_batch} were not timed", key="run", fix=fix)
    cold_s = 0.0 if scaling is None else same[0].cold_start_s(0.0)
    policy = scaling or Fixed(plan.replicas)
    front, reach, before = None, traffic, np.zeros(len(traffic))
    if measured.unloaded is not None:
        alone_s = service.mean(traffic, 1) + (plan.max_wait_ms / 1e3 if plan.max_batch > 1 else 0.0)
        # what requests in batches wait for, the batch or the server, is not told apart
        unloaded = measured.unloaded if plan.max_batch == 1 else replace(measured.unloaded, busy=[])
        front = Front.of(unloaded, alone_s, service.mean(traffic, 1) / (unloaded.replicas or plan.replicas))
        reach, before = _behind(front, traffic)
    time_of = service.bind(reach, plan.max_batch, 0)
    served = simulate(reach, time_of, policy, Batching(plan.max_batch, plan.max_wait_ms / 1e3), cold_s, TIMEOUT_S)
    served = replace(served, latency=served.latency + before)
    latencies = {f"p{100 * level:.0f}_ms": _finite(1e3 * served.quantile(level)) for level in LEVELS}
    times = np.array([when for when, _ in measured.replicas])
    return latencies | {
        "lost": served.lost,
        "utilization": served.utilization,
        "front": None if front is None else _told(front),
        "replicas": served.replicas_at(times).tolist() if times.size else [],
    }


def _behind(front: Front, traffic: Traffic) -> tuple[Traffic, np.ndarray]:
    """When requests reach the model, in the order in which they do, and what each took to, s."""
    took = front.latencies(traffic.arrivals, FRONT_SEED)
    reached = traffic.arrivals + took
    order = np.argsort(reached, kind="stable")
    seconds = max(traffic.seconds, float(reached[order[-1]]))
    return traffic.taken(order, reached[order], seconds), took[order]


def _told(front: Front) -> dict[str, Any]:
    """Of the front, in the ledger."""
    alone_ms = 1e3 * float(np.median(front.alone_s))
    return {"alone_ms": alone_ms, "sharing": front.sharing.tolist(), "slower": front.slower.tolist()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
