"""A Ray cluster of this machine, or a connection to one."""

from __future__ import annotations

import logging
import os
import signal
from typing import Any

import psutil

log = logging.getLogger(__name__)
# Ray's daemons read them when they start; what the user has set stays. Its own limits are too short on a busy machine.
# Two have no variable: 15 s for the dashboard's agent, and 30 s for the whole node. The agent is quick unless the
# packages of ray[default] or ray[serve] are installed, so the extra `serve` brings only what ray.serve imports
TRIES = 3
TOO_LATE = "timed out during startup"  # the second time the files that they import are in memory
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_gcs_server_port_wait_time_s": "300",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
}


def connect(**options: Any) -> None:
    """``ray.init``, which is tried again, sends no statistics, and leaves the handlers of signals as they are.

    Args:
        options: of ``ray.init``.

    Raises:
        ConnectionError, ValueError: no cluster at the address.
    """
    import ray

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Ray takes SIGTERM, and would leave with another exit code
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for left in reversed(range(TRIES)):
            before = _children()
            try:
                ray.init(**options)
                return
            except Exception as error:
                if not left or TOO_LATE not in str(error):
                    raise
                log.warning("Ray's daemons did not start within its limit; again")
                for process in _children() - before:
                    process.kill()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))
