"""Tables of datasets."""

from __future__ import annotations

from typing import Any

from optkit.core.compat.versions import attribute


def fingerprint(rows: Any) -> str:
    """What changes with the rows of a ``datasets.Dataset`` and with every transform of them (datasets 5.2)."""
    return str(attribute(rows, "_fingerprint", "datasets"))
