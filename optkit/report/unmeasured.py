"""What is made and not measured yet (``measure=later``), said wherever a run is shown."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

from optkit.core import ledger
from optkit.core.errors import UserError
from optkit.core.records import variant_folder

log = logging.getLogger(__name__)


def not_measured(folder: Path) -> str | None:
    """One line about the variants of a run that are not measured yet; None if there are none."""
    waiting = ledger.unmeasured(folder) if folder.is_dir() else []
    if not waiting:
        return None
    names = ", ".join(variant_folder(folder, record).name for record in waiting)
    return f"Not measured yet: {names}. Measure them: optkit measure {shlex.quote(str(folder))}"


def measured_runs(paths: Sequence[str | Path]) -> list[Path]:
    """The runs in run folders and in folders of these, those of which nothing is measured yet left out with a warning.

    Raises:
        UserError: nothing of any of them is measured yet.
    """
    runs = [run for path in paths for run in ledger.runs_of(Path(path))]
    found = [run for run in runs if run.is_file() or (run / ledger.LEDGER_NAME).is_file() or not not_measured(run)]
    if runs and not found:
        shown = " ".join(shlex.quote(str(path)) for path in paths)
        message = f"nothing of {'these runs' if len(runs) > 1 else 'this run'} is measured yet"
        raise UserError(message, key=str(paths[0]), fix=f"optkit measure {shown}")
    for run in runs:
        if waiting := not_measured(run):
            log.warning("%s: %s", run.name, waiting)
    return found
