"""A Ray cluster of this machine, or a connection to one; on a busy machine Ray's own limits of 30 s are too short."""

from __future__ import annotations

import os
import signal
from typing import Any

PATIENCE_S = 300
# Ray's daemons read them when they start; what the user has set stays
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_agent_register_timeout_ms": str(1000 * PATIENCE_S),
    "RAY_gcs_server_port_wait_time_s": str(PATIENCE_S),
}


def connect(**options: Any) -> None:
    """``ray.init``, which waits longer, sends no statistics, and leaves the handlers of signals as they are.

    Args:
        options: of ``ray.init``.

    Raises:
        ConnectionError, ValueError: no cluster at the address.
    """
    import ray

    from optkit.core.compat.ray import waits_for_node

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Ray takes SIGTERM, and would leave with another exit code
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with waits_for_node(PATIENCE_S):
            ray.init(**options)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
