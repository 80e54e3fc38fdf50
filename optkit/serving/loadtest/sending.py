"""Requests, sent to a server at the times of a traffic, whether or not those before were answered."""

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

from optkit.core.errors import UserError
from optkit.costs.traffic import Traffic

if TYPE_CHECKING:
    from aiohttp import ClientSession

TIMEOUT_S = 60.0
LATE_S, LATE_SHARE = 0.002, 0.1  # lag of sending, absolutely and of the median latency, that the client may have
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


def post(session: ClientSession, url: str, request: Request) -> Any:
    """Begins a request; awaited, or entered, it gives the response."""
    headers = {"Content-Type": request.content_type}
    return session.post(url, data=request.body, headers=headers, allow_redirects=False)


async def send(session: ClientSession, url: str, request: Request, traffic: Traffic) -> Sent:
    """Sends the requests of a traffic, and waits for all of their answers."""
    import aiohttp

    latency, lag = np.full(len(traffic), math.nan), np.zeros(len(traffic))
    outcomes: Counter[str] = Counter()

    async def one(place: int) -> None:
        begun = time.perf_counter()
        try:
            async with post(session, url, request) as response:
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
