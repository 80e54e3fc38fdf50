"""The state of long work on disk: saved whole or not at all, read back with weights_only."""

from __future__ import annotations

import logging
import os
import pickle
import socket
import time
import zipfile
from pathlib import Path
from typing import Any

import torch

from optkit.core.cache import new_file
from optkit.core.errors import UserError, first_line
from optkit.core.processes import current
from optkit.models.weights import BROKEN

log = logging.getLogger(__name__)
NAME = "training.pt"


def save_state(folder: Path, state: dict[str, Any], name: str = NAME) -> None:
    """Writes tensors and plain values, in the first process; a kill while writing leaves the previous state."""
    if not current().is_first:
        return
    with new_file(folder / name, key="store") as temporary, open(temporary, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def load_state(folder: Path, name: str = NAME) -> dict[str, Any] | None:
    """The saved state, or None if there is none; a damaged one is logged with the reason, and is none.

    All processes of a run call it together: what the first finds counts.

    Raises:
        UserError: the first has read it, and this process cannot.
    """
    processes, path = current(), folder / name
    state = _read(path) if processes.is_first else None
    found = state is not None
    if processes.first(lambda: found) and state is None:
        state = _read(path)
        if state is None:
            where = f"process {processes.rank} on {socket.gethostname()} cannot read {path}"
            raise UserError(where, key="store", fix="set out and store to folders that all machines see")
    return state


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as file:  # torch.load checks no checksums
            if (damaged := file.testzip()) is not None:
                raise ValueError(f"the bytes of {damaged} have changed")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state
    except (pickle.UnpicklingError, zipfile.BadZipFile, *BROKEN) as error:
        log.warning("%s cannot be read, so the work starts anew: %s", path, first_line(error))
        return None


class Schedule:
    """When the state of work is saved: after so many steps, after so many minutes, whichever comes first.

    Args:
        steps: between two saves; None for no such limit.
        minutes: the same.
    """

    def __init__(self, steps: int | None, minutes: float | None):
        self.steps, self.minutes = steps, minutes
        self.saved(0)

    def due(self, step: int) -> bool:
        """Whether to save after a step."""
        by_steps = self.steps is not None and step - self._step >= self.steps
        return by_steps or (self.minutes is not None and time.monotonic() - self._time >= 60 * self.minutes)

    def saved(self, step: int) -> None:
        """The state is saved as after this step."""
        self._step, self._time = step, time.monotonic()
