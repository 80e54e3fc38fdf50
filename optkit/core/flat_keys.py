"""A nested config as flat keys, as they are written on the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves with their dotted keys; a list is a leaf."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
