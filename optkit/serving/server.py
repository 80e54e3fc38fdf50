"""A plan on Ray Serve, on this machine, until a signal ends it."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from optkit.core.compat.ray import own_node
from optkit.core.errors import StageError, UserError, first_line
from optkit.core.interruption import Interruption, end_children
from optkit.launch.ray_cluster import connect
from optkit.serving.plan import Plan

log = logging.getLogger(__name__)
# https://docs.ray.io/en/latest/serve/advanced-guides/performance.html; without a second port for requests, and with a
# token for the ports between Ray's processes, which take pickles
SETTINGS = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
    "RAY_AUTH_MODE": "token",
}
OBJECTS_BYTES = 100 * 2**20  # of shared memory; requests are far smaller


def serve_plan(folder: Path, plan: Plan, host: str, port: int, max_bytes: int, trust: Iterable[str]) -> None:
    """Serves until a signal comes.

    Args:
        folder: of the model.
        plan: the numbers.
        host, port: where to listen.
        max_bytes: of a request's body.
        trust: what may be called to open the session.

    Raises:
        UserError: the port is taken.
        StageError: the replicas did not start.
        Interruption: the signal.
    """
    _check_port(host, port)
    home = tempfile.mkdtemp(prefix="optkit-ray-", dir="/tmp")  # names of sockets must be short
    try:
        _start(folder, plan, host, port, max_bytes, list(trust), home)
        sys.stdout.write(f"serving {plan.name or folder} on {plan.engine} at http://{host}:{port}\n")
        sys.stdout.flush()
        while True:
            time.sleep(3600)
    except Interruption as error:
        error.add_note("while serving")
        raise
    finally:
        end_children()
        shutil.rmtree(home, ignore_errors=True)


def _start(folder: Path, plan: Plan, host: str, port: int, max_bytes: int, trust: list[str], home: str) -> None:
    for name, value in SETTINGS.items():  # Ray reads them when it is imported
        os.environ.setdefault(name, value)
    from ray import serve

    from optkit.serving.application import APPLICATION, application

    cores = plan.most * plan.threads
    if cores > (has := len(os.sched_getaffinity(0))):
        log.warning(
            "%d replicas of %d threads slow each other down: this machine has %d cores", plan.most, plan.threads, has
        )
    connect(
        address="local", num_cpus=cores, include_dashboard=False, object_store_memory=OBJECTS_BYTES,
        logging_level=logging.ERROR, log_to_driver=False, **own_node(home),
    )  # fmt: skip
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    # what was predicted is compared with: see optkit loadtest
    about = {"variant": plan.variant, "name": plan.name, "scaling": plan.to_json()["scaling"], "replicas": plan.most}
    made = application(str(folder.resolve()), plan, max_bytes=max_bytes, trust=trust, about=about, scale=True)
    try:
        serve.start(http_options={"host": host, "port": port})
        serve.run(made, name=APPLICATION, route_prefix="/")
    except (RuntimeError, TimeoutError) as error:
        raise StageError(f"the replicas did not start: {first_line(error)}") from error


def _check_port(host: str, port: int) -> None:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((host, port))
    except OSError as error:
        fix = "another --port, or --host 127.0.0.1"
        raise UserError(f"cannot listen there: {error.strerror}", key="port", value=port, fix=fix) from error
