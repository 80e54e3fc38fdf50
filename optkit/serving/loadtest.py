"""Traffic sent to a server at its own times, and its latencies beside those that were predicted."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
import socket
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from optkit.core.errors import UserError, first_line
from optkit.costs.traffic import Traffic
from optkit.serving.plan import Plan

if TYPE_CHECKING:
    from aiohttp import ClientSession

FORMAT = 1
LEDGER = "loadtest.jsonl"
TIMEOUT_S = 60.0
LATE_S, LATE_SHARE = 0.002, 0.1  # lag of sending, absolutely and of the median latency, that the client may have
LEVELS = (0.5, 0.95, 0.99)
SPIN_S = 0.002  # before its time a request is waited for by short naps: timers of the loop are a millisecond coarse


@dataclass(frozen=True)
class Sent:
    """What came of the requests.

    Attributes:
        latency: from the moment of sending to the whole answer, s, ``(N,)``; not a number where there is none.
        lag: how much later than its time each was sent, s, ``(N,)``.
        outcomes: by HTTP status, or by the error that came instead.
        seconds: from the first request's time to the last answer.
    """

    latency: np.ndarray
    lag: np.ndarray
    outcomes: Mapping[str, int]
    seconds: float

    @property
    def answered(self) -> np.ndarray:
        """Latencies of the requests that were answered with 200, s."""
        return self.latency[~np.isnan(self.latency)]

    @property
    def client_bound(self) -> bool:
        """Whether the client sent so late that latencies say more of it than of the server."""
        typical = float(np.median(self.answered)) if self.answered.size else 0.0
        return bool(np.quantile(self.lag, 0.99) > max(LATE_S, LATE_SHARE * typical))


@dataclass(frozen=True)
class Request:
    """A request that is sent again and again."""

    body: bytes
    content_type: str


def check_url(url: str, remote: bool) -> str:
    """The server's address without its path; raises UserError for another host than this one, unless asked for."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"no address: {error}", key="url", value=url) from error
    if parts.scheme not in ("http", "https") or not host:
        raise UserError("no address of HTTP", key="url", value=url, fix="such as http://127.0.0.1:8000")
    if not remote and not _is_loopback(host):
        message = f"{host} is another machine, which traffic would load"
        raise UserError(message, key="url", value=url, fix="--remote, if it is yours")
    return f"{parts.scheme}://{parts.netloc}"


def _is_loopback(host: str) -> bool:
    """Whether every address of a host is of this machine."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError as error:
        raise UserError(f"no host '{host}': {error.strerror}", key="url", value=host) from error
    return all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in found)


def loadtest(url: str, traffic: Traffic, request: Request | None = None, timeout_s: float = TIMEOUT_S) -> Measured:
    """Sends traffic to a server, each request at its time, whether or not those before it were answered.

    Args:
        url: of the server, such as ``http://127.0.0.1:8000``.
        traffic: when requests are sent.
        request: what is sent to ``/predict``; None draws inputs of the shapes that ``/metadata`` says.
        timeout_s: after which a request counts as lost.

    Raises:
        UserError: no server there, or it refuses the request.
    """
    return asyncio.run(_loadtest(url, traffic, request, timeout_s))


@dataclass(frozen=True)
class Measured:
    """What a server said of itself, and what came of the requests to it."""

    about: Mapping[str, Any]
    sent: Sent


async def _loadtest(url: str, traffic: Traffic, request: Request | None, timeout_s: float) -> Measured:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=timeout_s)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        about = await _about(session, url)
        if request is None:
            request = drawn(about, url)
        await _first(session, url, request)
        return Measured(about, await _send(session, f"{url}/predict", request, traffic))


async def _about(session: ClientSession, url: str) -> dict[str, Any]:
    """What ``/metadata`` says; empty for a server that has none."""
    import aiohttp

    try:
        async with session.get(f"{url}/metadata", allow_redirects=False) as response:
            found = json.loads(await response.text()) if response.status == 200 else {}
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        fix = "start one: optkit serve"
        raise UserError(f"no server: {first_line(error)}", key="url", value=url, fix=fix) from error
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def drawn(about: Mapping[str, Any], url: str) -> Request:
    """A request of the shapes and types that a server says, drawn from a seed.

    Raises:
        UserError: it says none.
    """
    random = np.random.default_rng(0)
    try:
        inputs = {
            str(put["name"]): (
                random.standard_normal(put["shape"]).astype(np.float32)
                if np.dtype(put["dtype"]).kind == "f"
                else np.ones(put["shape"], put["dtype"])
            )
            for put in about["inputs"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise UserError("its /metadata has no inputs", key="url", value=url, fix="give --body FILE") from error
    text = json.dumps({"inputs": {name: x.tolist() for name, x in inputs.items()}})
    return Request(text.encode(), "application/json")


async def _first(session: ClientSession, url: str, request: Request) -> None:
    """One request before the others, which opens the session and shows whether the body is right."""
    import aiohttp

    try:
        async with _post(session, f"{url}/predict", request) as response:
            text = (await response.text()).strip()[:200]
            if response.status != 200:
                raise UserError(f"the server answers {response.status}: {text}", key="url", value=url)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise UserError(f"no answer: {type(error).__name__} {first_line(error)}", key="url", value=url) from error


def _post(session: ClientSession, url: str, request: Request) -> Any:
    headers = {"Content-Type": request.content_type}
    return session.post(url, data=request.body, headers=headers, allow_redirects=False)


async def _send(session: ClientSession, url: str, request: Request, traffic: Traffic) -> Sent:
    import aiohttp

    latency, lag = np.full(len(traffic), math.nan), np.zeros(len(traffic))
    outcomes: Counter[str] = Counter()

    async def one(place: int) -> None:
        begun = time.perf_counter()
        try:
            async with _post(session, url, request) as response:
                await response.read()
                outcomes[str(response.status)] += 1
                if response.status == 200:
                    latency[place] = time.perf_counter() - begun
        except TimeoutError:
            outcomes["timeout"] += 1
        except (aiohttp.ClientError, OSError) as error:
            outcomes[type(error).__name__] += 1

    start = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for place, due in enumerate((traffic.arrivals + start).tolist()):
            while (left := due - time.perf_counter()) > 0:
                await asyncio.sleep(left - SPIN_S if left > SPIN_S else 0)
            tasks.create_task(one(place))
            await asyncio.sleep(0)  # the task sends now
            lag[place] = max(0.0, time.perf_counter() - due)
    return Sent(latency, lag, dict(outcomes), time.perf_counter() - start)


def predict(run: Path, measured: Measured, traffic: Traffic) -> dict[str, float | None]:
    """What the cost model says of the same requests to the same deployment, ms.

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
    time_of = service.bind(traffic, plan.max_batch, 0)
    policy = scaling or Fixed(plan.replicas)
    served = simulate(traffic, time_of, policy, Batching(plan.max_batch, plan.max_wait_ms / 1e3), cold_s, TIMEOUT_S)
    latencies = {f"p{100 * level:.0f}_ms": _finite(1e3 * served.quantile(level)) for level in LEVELS}
    return latencies | {"lost": served.lost, "utilization": served.utilization}


def row(url: str, traffic: Traffic, measured: Measured, predicted: Mapping[str, Any] | None) -> dict[str, Any]:
    """A line of the ledger: percentiles, what was predicted, and every latency and lag in ms."""
    sent = measured.sent
    answered = sent.answered
    levels = {f"p{100 * level:.0f}_ms": _quantile(answered, level) for level in LEVELS}
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
        "predicted": None if predicted is None else dict(predicted),
        "about": dict(measured.about),
        "latency_ms": [None if math.isnan(x) else round(1e3 * x, 3) for x in sent.latency.tolist()],
        "sent_late_ms": [round(1e3 * x, 3) for x in sent.lag.tolist()],
    }


def _quantile(values: np.ndarray, level: float) -> float | None:
    return 1e3 * float(np.quantile(values, level)) if values.size else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


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
    if failed := {code: n for code, n in line["outcomes"].items() if code != "200"}:
        lines.append("not answered: " + ", ".join(f"{code} ({n})" for code, n in sorted(failed.items())))
    lag = f"sent late by {line['lag_p50_ms']:.2g} ms (p50), {line['lag_p99_ms']:.2g} ms (p99)"
    if line["client_bound"]:
        lag += ": the client was the bottleneck, so these latencies are not the server's alone"
    return "\n".join([*lines, lag]) + "\n"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def body_of(path: Path) -> Request:
    """The request in a file: JSON, a text or an image, by its name's ending.

    Raises:
        UserError: no such file, or of no known kind.
    """
    import mimetypes

    kind = mimetypes.guess_type(path.name)[0] or ""
    if kind not in ("application/json", "text/plain") and not kind.startswith("image/"):
        raise UserError(f"{path.name} is no JSON, text or image", key="body", value=str(path), fix="such as one.json")
    try:
        return Request(path.read_bytes(), kind)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", key="body", value=str(path)) from error
