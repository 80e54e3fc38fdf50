"""The state of long work on disk: saved whole or not at all, read back with weights_only."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from optkit.core.cache import new_file
from optkit.core.errors import first_line

log = logging.getLogger(__name__)
NAME = "training.pt"


def save_state(folder: Path, state: dict[str, Any], name: str = NAME) -> None:
    """Writes tensors and plain values; a kill while writing leaves the previous state."""
    with new_file(folder / name, key="store") as temporary, open(temporary, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def load_state(folder: Path, name: str = NAME) -> dict[str, Any] | None:
    """The saved state, or None if there is none; one that cannot be read is logged with the reason, and is none."""
    path = folder / name
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        log.warning("%s cannot be read, so the work starts anew: %s", path, first_line(error))
        return None
