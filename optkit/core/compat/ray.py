"""Arguments of ray.init that Ray does not document."""

from __future__ import annotations

from typing import Any


def own_node(folder: str) -> dict[str, Any]:
    """Arguments of ``ray.init`` for a cluster of this process alone: on the loopback, its files in a folder (ray 2.60).

    Args:
        folder: short, for Ray keeps sockets in it.
    """
    return {"_temp_dir": folder, "_node_ip_address": "127.0.0.1"}
