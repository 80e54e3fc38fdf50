"""The application of Ray Serve: a front that speaks HTTP, and the replicas of the model, which answer in batches.

The front checks requests, and counts them for ``/metrics``. The model's replicas are scaled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from optkit.core.errors import UserError, first_line
from optkit.serving.manifests import IN_PROGRESS, autoscaling
from optkit.serving.plan import Plan

APPLICATION, MODEL, FRONT = "optkit", "Model", "Front"
MAX_BYTES = 16 * 2**20
AT_ONCE = 10_000  # requests that the front holds; more are refused
MOST_HELD = 256 * 2**20  # bytes of bodies that the front holds; what comes then is refused
BODY_S = 30.0  # in which a body must have come
LARGE = 2**16  # bytes; larger bodies are read in a thread, so that the front goes on meanwhile
BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
BROKEN, STARTING = ("UNHEALTHY", "DEPLOY_FAILED"), ("UPDATING",)  # states of the model, in Ray's words
HEALTH_S = 1.0  # for so long the state of the replicas is not asked again
ARGUMENTS = ("folder", "engine", "max_batch", "max_wait_ms", "threads", "max_bytes", "trust", "about")


def build(args: Mapping[str, Any]) -> serve.Application:
    """The application, of the ``args`` of a Serve config, whose ``deployments`` have the replicas.

    Args:
        args: ``folder`` of the model and ``max_batch``; ``max_wait_ms``, ``threads``, ``max_bytes`` of a body,
            ``trust`` (names, see `optkit.load`), and ``about``, what ``/metadata`` says besides. ``engine`` must be the
            session's, if it is given.

    Raises:
        UserError: an unknown or a missing argument.
    """
    for key in args:
        if key not in ARGUMENTS:
            raise UserError("unknown argument", key=f"args.{key}", fix=f"one of {', '.join(ARGUMENTS)}")
    for key in ("folder", "max_batch"):
        if key not in args:
            raise UserError("missing", key=f"args.{key}")
    numbers = {key: args[key] for key in ("max_batch", "max_wait_ms", "threads") if key in args}
    return application(str(args["folder"]), Plan(args.get("engine", ""), **numbers), **_others(args))


def _others(args: Mapping[str, Any]) -> dict[str, Any]:
    return {key: args[key] for key in ("max_bytes", "trust", "about") if key in args}


def application(
    folder: str,
    plan: Plan,
    *,
    max_bytes: int = MAX_BYTES,
    trust: Sequence[str] = (),
    about: Mapping[str, Any] | None = None,
    scale: bool = False,
) -> serve.Application:
    """The application of a plan.

    Args:
        folder: of the model.
        plan: the numbers; without an engine, that of the session.
        max_bytes: of a body.
        trust: what may be called to open the session.
        about: what ``/metadata`` says besides.
        scale: whether the model has the plan's replicas, or one.
    """
    options: dict[str, Any] = autoscaling(plan) if scale else {}
    options |= {"max_ongoing_requests": plan.max_ongoing, "ray_actor_options": {"num_cpus": plan.threads}}
    numbers = {"max_batch": plan.max_batch, "max_wait_ms": plan.max_wait_ms, "threads": plan.threads}
    model: Any = Model
    front: Any = Front
    bound = model.options(**options).bind(folder, trust=list(trust), engine=plan.engine, **numbers)
    made: serve.Application = front.bind(bound, folder, list(trust), max_bytes, numbers | dict(about or {}))
    return made


@serve.deployment(name=MODEL)
class Model:
    """A replica: requests gather for a batch while it computes the one before."""

    def __init__(
        self, folder: str, max_batch: int, max_wait_ms: float, threads: int, trust: Sequence[str], engine: str
    ):
        from optkit.serving.answers import Answers
        from optkit.serving.model_folder import saved_session

        saved = saved_session(Path(folder), trust).engine
        if engine not in ("", saved):
            raise UserError(f"the session in {folder} is of {saved}", key="engine", value=engine)
        self._answers = Answers(Path(folder), max_batch, threads, trust)
        self._batched.set_max_batch_size(max_batch)  # type: ignore[attr-defined]
        self._batched.set_batch_wait_timeout_s(max_wait_ms / 1e3)  # type: ignore[attr-defined]

    async def __call__(self, inputs: dict[str, Any]) -> tuple[Any, int]:
        """An answer, or a line that says why there is none, and the size of its batch."""
        found: tuple[Any, int] = await self._batched(inputs)
        return found

    @serve.batch
    async def _batched(self, requests: list[dict[str, Any]]) -> list[tuple[Any, int]]:
        # in a thread, so that the replica takes requests and answers health checks meanwhile
        found = await asyncio.to_thread(self._answers, requests)
        return [(answer, len(requests)) for answer in found]


@serve.deployment(name=FRONT, max_ongoing_requests=AT_ONCE, ray_actor_options={"num_cpus": 0})
class Front:
    """HTTP: ``POST /predict``, and ``GET`` of ``/healthz``, ``/metrics`` and ``/metadata``."""

    def __init__(self, model: Any, folder: str, trust: Sequence[str], max_bytes: int, about: Mapping[str, Any]):
        from optkit.serving.model_folder import inputs_of, read_rules, saved_session
        from optkit.serving.requests import Requests

        saved, rules = saved_session(Path(folder), trust), read_rules(Path(folder))
        inputs = inputs_of(saved, rules, folder)
        self._model = model
        self._requests = Requests(inputs, rules, Path(folder), max_bytes)
        described = [{"name": one.name, "dtype": one.dtype, "shape": list(one.shape)} for one in inputs]
        own = {"engine": saved.engine, "inputs": described, "accepts": self._requests.accepts}
        self._about = dict(about) | own | {"classes": rules.get("classes"), "max_bytes": max_bytes}
        self._metrics = Metrics()
        self._held = 0  # bytes of bodies
        self._health: tuple[float, int, dict[str, Any]] | None = None

    async def __call__(self, request: Request) -> Response:
        """Answers a request."""
        path, method = request.url.path.rstrip("/"), request.method
        if path == "/predict":
            return await self._counted(request) if method == "POST" else _told(405, "only POST")
        if path not in ("/healthz", "/metrics", "/metadata"):
            return _told(404, f"nothing at {path[:100]}: POST /predict, GET /healthz, /metrics or /metadata")
        if method not in ("GET", "HEAD"):
            return _told(405, "only GET")
        if path == "/metrics":
            return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)
        if path == "/metadata":
            return JSONResponse(self._about)
        code, found = await self._state()
        return JSONResponse(found, code)

    async def _counted(self, request: Request) -> Response:
        begun = time.perf_counter()
        with self._metrics.in_progress.track_inprogress():
            try:
                response = await self._predict(request)
            except asyncio.CancelledError:  # the client went away
                self._metrics.requests.labels("499").inc()
                raise
        self._metrics.requests.labels(str(response.status_code)).inc()
        if response.status_code == 200:
            self._metrics.seconds.observe(time.perf_counter() - begun)
        return response

    async def _predict(self, request: Request) -> Response:
        from optkit.serving.requests import RequestError

        body = bytearray()
        try:
            async with asyncio.timeout(BODY_S):
                async for part in request.stream():
                    body += part
                    self._held += len(part)
                    self._requests.check_size(len(body))
                    if self._held > MOST_HELD:
                        return _told(503, "too many large requests at a time")
            given = bytes(body), request.headers.get("content-type", "")
            large = len(body) > LARGE
            inputs = await asyncio.to_thread(self._requests.read, *given) if large else self._requests.read(*given)
        except RequestError as error:
            return _told(400, str(error))
        except TimeoutError:
            return _told(408, f"the body did not come within {BODY_S:.0f} s")
        except ClientDisconnect:
            return _told(499, "the client went away")
        finally:
            self._held -= len(body)
        try:
            answer, size = await self._model.remote(inputs)
        except (RayServeException, RayError) as error:  # such as a replica that died
            return _told(503, f"no replica answers: {first_line(error)}")
        self._metrics.batch.observe(size)
        return _told(500, answer) if isinstance(answer, str) else JSONResponse(answer)

    async def _state(self) -> tuple[int, dict[str, Any]]:
        """Whether the model answers, and its number of replicas; scaled to zero, it does when it is asked."""
        now = time.monotonic()
        if self._health is None or now - self._health[0] > HEALTH_S:
            status = await asyncio.to_thread(serve.status)
            deployments = status.applications[APPLICATION].deployments
            model = deployments[MODEL]
            states: Mapping[Any, int] = model.replica_states
            running = states.get("RUNNING", 0)
            broken, first = (model.status.value in these for these in (BROKEN, STARTING))
            state = "failing" if broken else "starting" if first and not running else "ok"
            self._health = (now, 200 if state == "ok" else 503, {"status": state, "replicas": running})
        return self._health[1:]


class Metrics:
    """What the front counts, for Prometheus."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        one: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("optkit_requests", "Requests, by HTTP status.", ["code"], **one)
        self.in_progress = Gauge(IN_PROGRESS, "Requests that wait or are served.", **one)
        self.seconds = Histogram("optkit_request_seconds", "Waiting and service, s.", buckets=BUCKETS, **one)
        sizes = [2**n for n in range(13)]
        self.batch = Histogram("optkit_batch_size", "Requests in the batch of each.", buckets=sizes, **one)


def _told(code: int, message: str) -> Response:
    return JSONResponse({"error": message}, code)
