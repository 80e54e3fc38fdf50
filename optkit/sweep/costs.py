"""What stages took before, from the ledgers in a folder of runs."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from optkit.core.errors import UserError
from optkit.core.ledger import LEDGER_NAME, Ledger

if TYPE_CHECKING:
    from optkit.recipe.plan import PlannedStep

log = logging.getLogger(__name__)
NEWEST = 30  # ledgers that are read: they hold every timed call, so many take long to read


class Costs:
    """The costs of stages in the newest ledgers of a folder of runs.

    Attributes:
        used: how many records were used so far.

    Args:
        out: the folder of runs.
    """

    def __init__(self, out: Path):
        self._exact: dict[str, list[float]] = defaultdict(list)
        self._named: dict[str, list[float]] = defaultdict(list)
        self._counted: set[str] = set()
        self.used = 0
        files = sorted(out.glob(f"*/{LEDGER_NAME}"), key=lambda file: file.stat().st_mtime, reverse=True)
        for file in files[:NEWEST]:
            try:
                self._read(file)
            except UserError as error:
                log.warning("no costs from %s: %s", file, error)

    def of(self, step: PlannedStep) -> float | None:
        """The median of the seconds that such a stage took: with the same parameters, or else of the same name."""
        from optkit.recipe.keys import params_of

        assert step.stage is not None
        exact, named = _keys(step.name, step.stage.technique, params_of(step.stage))
        found, key = (self._exact, exact) if exact in self._exact else (self._named, named)
        if key not in found:
            return None
        if key not in self._counted:
            self._counted.add(key)
            self.used += len(found[key])
        return median(found[key])

    def _read(self, file: Path) -> None:
        for record in Ledger(file).records():
            if record.measured_again == 0:
                exact, named = _keys(record.stage, record.technique, record.params)
                self._exact[exact].append(record.cost.wall_s)
                self._named[named].append(record.cost.wall_s)


def _keys(name: str, technique: str, params: object) -> tuple[str, str]:
    """What a stage is found by: with its parameters, and by its name and technique alone."""
    named = f"{technique} {name}"
    return f"{named} {json.dumps(params, sort_keys=True, default=str)}", named
