"""A Ray cluster of this machine, or a connection to one."""

from __future__ import annotations

import os
import signal
from typing import Any

# Ray's daemons read them when they start; what the user has set stays. Its own limits are too short on a busy machine.
# Two have no variable: 15 s for the dashboard's agent, and 30 s for the whole node. The agent is quick unless the
# packages of ray[default] or ray[serve] are installed, so the extra `serve` brings only what ray.serve imports
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_gcs_server_port_wait_time_s": "300",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
}


def connect(**options: Any) -> None:
    """``ray.init``, which sends no statistics, and leaves the handlers of signals as they are.

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
        ray.init(**options)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
