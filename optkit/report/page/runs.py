"""The runs that a page shows: their records, rows, verdict, and what else lies in their folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.core import ledger
from optkit.core.errors import UserError
from optkit.core.records import Record
from optkit.report.page.verdict import Verdict, verdict
from optkit.report.rows import Row, rows

if TYPE_CHECKING:
    from optkit.prune import Sensitivity


@dataclass(frozen=True)
class ShownRun:
    """One run as the page shows it.

    Attributes:
        name: of its folder; told apart by its parent where two are the same.
        folder: as it was given.
        recipe_text: the composed recipe; empty where the folder has none.
        sensitivities: tables of what its layers are worth, by where they come from.
        ablation: what ``optkit ablate`` left in the folder.
    """

    name: str
    folder: Path
    records: list[Record]
    rows: list[Row]
    verdict: Verdict
    recipe_text: str = ""
    sensitivities: dict[str, Sensitivity] = field(default_factory=dict)
    ablation: dict[str, Any] | None = None

    @property
    def first(self) -> Record:
        return self.records[0]


def open_runs(folders: Sequence[Path]) -> list[ShownRun]:
    """Reads run folders (or ledger files).

    Raises:
        UserError: a folder without a ledger, or one whose ledger is empty.
    """
    names = _names(folders)
    return [_open(folder, name) for folder, name in zip(folders, names, strict=True)]


def headline(run: ShownRun) -> tuple[str, int] | None:
    """The engine and batch size that the verdict is about; else those of the last variant at the largest batch."""
    timed = [row for row in run.rows if row["speedup"] is not None]
    if not timed:
        return None
    row = run.verdict.row or max(timed, key=lambda r: (r["step"], r["batch_size"]))
    return row["engine"], row["batch_size"]


def _open(folder: Path, name: str) -> ShownRun:
    records = ledger.unique(ledger.read(folder))
    if not records:
        raise UserError(f"the ledger at {folder} holds no variant yet", fix="run the recipe to its first record")
    found = [row | {"run": name} for row in rows(records)]
    root = folder if folder.is_dir() else folder.parent
    recipe = root / "recipe.yaml"
    text = recipe.read_text(errors="replace") if recipe.is_file() else ""
    return ShownRun(name, folder, records, found, verdict(found), text, _sensitivities(root, records), _ablation(root))


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' last names, with as much of the path before them as tells them apart."""
    full = [(f if f.is_dir() else f.parent).absolute().parts for f in folders]
    depth = 1
    while depth < max(map(len, full)) and len({f[-depth:] for f in full}) < len(set(full)):
        depth += 1
    return ["/".join(f[-depth:]) for f in full]


def _sensitivities(root: Path, records: Sequence[Record]) -> dict[str, Sensitivity]:
    from optkit.prune import Sensitivity

    found = {}
    file = root / "sensitivity.json"
    if file.is_file():
        found["the baseline"] = Sensitivity.load(file)
    for record in records:
        if "sensitivity" in record.facts:
            found[f"before “{record.stage}”"] = Sensitivity.from_dict(record.facts["sensitivity"])
    return found


def _ablation(root: Path) -> dict[str, Any] | None:
    file = root / "ablation.json"
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(
            f"not JSON: {error}", key=str(file), fix="run optkit ablate again, or remove the file"
        ) from error
    return found if isinstance(found, dict) else None
