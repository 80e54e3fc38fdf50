"""The database of a study, which several processes may make, and work on, at the same time."""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from filelock import FileLock
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError

ATTEMPTS = 5  # of two that make the same tables at the same time, the slower one finds them at the next attempt


class StudyStorage(RDBStorage):
    """Optuna's storage in a database, whose trials change hands one at a time on SQLite as well.

    Optuna locks rows, which SQLite does not have: two processes may both find a trial waiting, and both take it, or
    both find that its process died. A lock file beside the database takes the place of the row's lock.

    Args:
        url: SQLAlchemy's.
        heartbeat_s: between two heartbeats of a process that works on a trial.
        grace_s: after which a process that was not heard of is dead.

    Raises:
        ValueError: the URL cannot be read.
        ImportError: the database's driver is not installed.
        SQLAlchemyError: the database cannot be reached.
    """

    def __init__(self, url: str, heartbeat_s: int, grace_s: int):
        file = _sqlite_file(url)
        self.turn: AbstractContextManager[object] = FileLock(f"{file}.lock") if file else nullcontext()
        patience = {"connect_args": {"timeout": grace_s}} if file else {}
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self.turn, warnings.catch_warnings():
                    warnings.simplefilter("ignore", ExperimentalWarning)
                    super().__init__(url, engine_kwargs=patience, heartbeat_interval=heartbeat_s, grace_period=grace_s)
                return
            except DBAPIError as error:
                if attempt == ATTEMPTS or not _is_made_by_another(error):
                    raise
                time.sleep(random.uniform(0.1, 0.5))

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Gives a trial another state, as Optuna's; false if it is no longer waiting."""
        with self.turn:
            return super().set_trial_state_values(trial_id, state, values)


def _sqlite_file(url: str) -> str | None:
    """The file of an SQLite database; None for another one, and for one in memory.

    Raises:
        ArgumentError: the URL cannot be read.
    """
    parsed = make_url(url)
    file = parsed.database
    if parsed.get_backend_name() != "sqlite" or not file or file == ":memory:" or file.startswith("file:"):
        return None
    return file


def _is_made_by_another(error: DBAPIError) -> bool:
    """Whether a table or the schema's version was there when this process was about to make it."""
    return isinstance(error, IntegrityError | ProgrammingError) or "already exists" in str(error)
