"""JSON files of an export, as transformers writes them: indented, a key a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_fields(path: Path, fields: Mapping[str, Any]) -> None:
    """Writes a file."""
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def update_fields(path: Path, fields: Mapping[str, Any]) -> None:
    """Writes some fields over those of a file."""
    write_fields(path, json.loads(path.read_text(encoding="utf-8")) | fields)
