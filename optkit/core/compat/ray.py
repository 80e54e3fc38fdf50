"""How long Ray waits for the daemons that it starts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from optkit.core.compat.versions import private


@contextmanager
def waits_for_node(seconds: float) -> Iterator[None]:
    """Inside it ``ray.init`` waits so long for a node that it starts, where it gives up after 30 s (ray 2.60).

    The node registers once its agents run. With the extra packages of Ray Serve these import for many seconds.
    """
    services = private("ray._private.services")
    ask = services.get_node

    def get_node(gcs_address: str, node_id: str) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            try:
                return ask(gcs_address, node_id)
            except RuntimeError:  # it has not registered yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    services.get_node = get_node
    try:
        yield
    finally:
        services.get_node = ask
