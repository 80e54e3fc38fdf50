"""A server, measured: before the traffic by requests of its own, then by the traffic."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from optkit.core.errors import UserError, first_line
from optkit.costs.traffic import Traffic
from optkit.serving.front import (
    ALONE,
    ALONE_S,
    BUSY_S,
    FEWEST,
    FEWEST_ALONE,
    PAUSE_S,
    ROUND_S,
    UNDER_WAY,
    WARM,
    Unloaded,
)  # fmt: skip
from optkit.serving.loadtest.sending import TIMEOUT_S, Request, Sent, drawn, post, send

if TYPE_CHECKING:
    from aiohttp import ClientSession

T = TypeVar("T")
log = logging.getLogger(__name__)
NOW = Traffic("now", np.zeros(1), 1.0)
SETTLE_S = 600.0  # for an autoscaler to take back what it started while the server was measured
POLL_S = 2.0  # from look to look at the number of replicas


def loadtest(
    url: str,
    traffic: Traffic,
    request: Request | None = None,
    timeout_s: float = TIMEOUT_S,
    unloaded: bool = False,
) -> Measured:
    """Sends traffic to a server, each request at its time, whether or not those before it were answered.

    Args:
        url: of the server, such as ``http://127.0.0.1:8000``.
        traffic: when requests are sent.
        request: what is sent to ``/predict``; None draws inputs of the shapes that ``/metadata`` says.
        timeout_s: after which a request counts as lost.
        unloaded: first measure the server, by requests one after another, and with 2, 4, 8 and 16 always under way,
            for 12 to 30 s. `predict` needs it.

    Raises:
        UserError: no server there, or it refuses the request.
    """
    return _in_thread(lambda: asyncio.run(_loadtest(url, traffic, request, timeout_s, unloaded)))


def _in_thread(work: Callable[[], T]) -> T:
    """Calls a function in another thread: what a signal raises here must not end up inside of asyncio."""
    done: Future[T] = Future()

    def call() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
            done.set_exception(error)

    threading.Thread(target=call, name="optkit-loadtest", daemon=True).start()
    return done.result()


@dataclass(frozen=True)
class Measured:
    """What a server said of itself, and what came of the requests to it.

    Attributes:
        about: its ``/metadata``.
        sent: what came of the traffic.
        unloaded: what it did before the traffic; None if that was not asked for.
        replicas: how many ran, ``(seconds since the first request's time, number)``, of a server that scales them.
    """

    about: Mapping[str, Any]
    sent: Sent
    unloaded: Unloaded | None = None
    replicas: list[tuple[float, int]] = field(default_factory=list)


async def _loadtest(url: str, traffic: Traffic, request: Request | None, timeout_s: float, unloaded: bool) -> Measured:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=timeout_s)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        about = await _about(session, url)
        if request is None:
            request = drawn(about, url)
        await _first(session, url, request)
        scales = bool(about.get("scaling"))
        before: Unloaded | None = None
        if unloaded:
            running = await _replicas(session, url) if scales else None
            before = await _unloaded(session, f"{url}/predict", request)
            if running is not None:
                before = replace(before, replicas=running)
                await _settled(session, url, running)
        replicas: list[tuple[float, int]] = []
        async with _watched(session, url, replicas if scales else None):
            sent = await send(session, f"{url}/predict", request, traffic)
        return Measured(about, sent, before, replicas)


async def _unloaded(session: ClientSession, url: str, request: Request) -> Unloaded:
    """Sends requests one after another, then so that there are always as many under way.

    Raises:
        UserError: one of them was not answered.
    """

    async def one() -> float:
        sent = await send(session, url, request, NOW)
        if not sent.answered.size:
            told = next(iter(sent.outcomes))
            raise UserError(f"a request before the traffic got no answer: {told}", key="url", value=url)
        return float(sent.latency[0])

    async def rate(under_way: int) -> float:
        """Answers a second, by Little's law."""
        took: list[float] = []
        until = time.perf_counter() + BUSY_S

        async def keep_busy() -> None:
            while len(took) < under_way * FEWEST or time.perf_counter() < until:
                took.append(await one())

        await asyncio.gather(*(keep_busy() for _ in range(under_way)))
        # as many were under way only after the first, and before the last
        return under_way / float(np.mean(took[under_way:-under_way]))

    log.info("the server is measured before the traffic")
    begun, alone = time.perf_counter(), []
    for place in range(WARM + ALONE):
        latency = await one()
        late = time.perf_counter() - begun > ALONE_S
        if place >= WARM or late:
            alone.append(latency)
            await asyncio.sleep(PAUSE_S)  # caches are left to others, as in traffic
        if late and len(alone) >= FEWEST_ALONE:
            break
    # where requests wait for a slow model, more of them show no more of the server
    worth = [under_way for under_way in UNDER_WAY if under_way * float(np.median(alone)) < ROUND_S]
    return Unloaded(np.array(alone), [(under_way, await rate(under_way)) for under_way in worth])


async def _replicas(session: ClientSession, url: str) -> int | None:
    """How many replicas ``/healthz`` says; None, and a warning, where it does not."""
    import aiohttp

    try:
        async with session.get(f"{url}/healthz") as response:
            return int(json.loads(await response.text())["replicas"])
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s/healthz says no number of replicas: %s", url, first_line(error))
        return None


async def _settled(session: ClientSession, url: str, number: int) -> None:
    """Waits until no more replicas run than before the server was measured, which may have started some."""
    end = time.monotonic() + SETTLE_S
    while (running := await _replicas(session, url)) is not None and running > number:
        if time.monotonic() > end:
            log.warning("%d replicas still run, and %d did before the server was measured", running, number)
            return
        await asyncio.sleep(POLL_S)


@asynccontextmanager
async def _watched(session: ClientSession, url: str, found: list[tuple[float, int]] | None) -> AsyncIterator[None]:
    """Inside, the number of replicas is looked at from time to time; with None it is not."""

    async def look() -> None:
        begun = time.perf_counter()
        while found is not None:
            if (number := await _replicas(session, url)) is not None:
                found.append((time.perf_counter() - begun, number))
            await asyncio.sleep(POLL_S)

    task = asyncio.create_task(look())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


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


async def _first(session: ClientSession, url: str, request: Request) -> None:
    """One request before the others, which opens the session and shows whether the body is right."""
    import aiohttp

    try:
        async with post(session, f"{url}/predict", request) as response:
            text = (await response.text()).strip()[:200]
            if response.status != 200:
                raise UserError(f"the server answers {response.status}: {text}", key="url", value=url)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise UserError(f"no answer: {type(error).__name__} {first_line(error)}", key="url", value=url) from error
