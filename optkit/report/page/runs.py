"""The runs that a page shows: their records, rows, verdict, and what else lies in their folders."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.core import ledger
from optkit.core.errors import UserError
from optkit.core.records import Record
from optkit.core.setting import Setting
from optkit.report.batch_sizes import add_limits
from optkit.report.page.verdict import Verdict, verdict
from optkit.report.rows import Row, is_trusted, rows
from optkit.report.search import read_search
from optkit.report.unmeasured import measured_runs

ABLATION, SERVING = "ablation.json", "cost.json"

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
        serving: what ``optkit cost`` left in the folder.
        search: what ``optkit search`` found, if the run is of its front.
    """

    name: str
    folder: Path
    records: list[Record]
    rows: list[Row]
    verdict: Verdict
    recipe_text: str = ""
    sensitivities: dict[str, Sensitivity] = field(default_factory=dict)
    ablation: dict[str, Any] | None = None
    serving: dict[str, Any] | None = None
    search: dict[str, Any] | None = None

    @property
    def first(self) -> Record:
        return self.records[0]


def open_runs(folders: Sequence[Path], p99_limit: float | None = None) -> list[ShownRun]:
    """Reads run folders (or ledger files); ``p99_limit`` (ms) instead of the one that each run was made with.

    Raises:
        UserError: a folder without a ledger, or one whose ledger is empty.
    """
    folders = measured_runs(folders)
    names = _names(folders)
    return [_open(folder, name, p99_limit) for folder, name in zip(folders, names, strict=True)]


def headline(run: ShownRun) -> tuple[str, Setting] | None:
    """The engine and setting that the verdict is about; else those of the last variant in the largest setting.

    None where no timing can be trusted.
    """
    timed = [row for row in run.rows if is_trusted(row)]
    if not timed:
        return None
    row = run.verdict.row or max(timed, key=lambda r: (r["step"], Setting.of(r)))
    return row["engine"], Setting.of(row)


def _open(folder: Path, name: str, p99_limit: float | None) -> ShownRun:
    records = ledger.unique(ledger.read(folder))
    if not records:
        raise UserError(f"the ledger at {folder} holds no variant yet", fix="run the recipe to its first record")
    names = variant_names(records)
    found = [row | {"run": name, "name": names[row["step"], row["variant"]]} for row in rows(records)]
    if p99_limit is not None:
        add_limits(found, p99_limit)
    root = folder if folder.is_dir() else folder.parent
    recipe = root / "recipe.yaml"
    text = recipe.read_text(errors="replace") if recipe.is_file() else ""
    return ShownRun(
        name,
        folder,
        records,
        found,
        verdict(found, root),
        text,
        _sensitivities(root, records, names),
        _ablation(root),
        _serving(root),
        read_search(root.absolute().parents[1]),
    )


def variant_names(records: Sequence[Record]) -> dict[tuple[int, str], str]:
    """Names of a run's variants, each its own: step and stage, or in a run that branches the whole chain."""
    short = {(r.step, r.variant): f"{f'{r.control}: ' if r.control else ''}{r.step} {r.stage}" for r in records}
    taken = Counter(short.values())
    whole = {(r.step, r.variant): f"{r.step} {'+'.join(r.chain)} {r.variant[:4]}" for r in records}
    own = {key: name for key, name in short.items() if taken[name] == 1}
    longer = {key: name.rpartition(" ")[0] for key, name in whole.items() if key not in own}
    again = Counter(longer.values())
    return own | {key: name if again[name] == 1 else whole[key] for key, name in longer.items()}


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' last names, with as much of the path before them as tells them apart."""
    full = [(f if f.is_dir() else f.parent).absolute().parts for f in folders]
    depth = 1
    while depth < max(map(len, full)) and len({f[-depth:] for f in full}) < len(set(full)):
        depth += 1
    return ["/".join(f[-depth:]) for f in full]


def _sensitivities(root: Path, records: Sequence[Record], names: dict[tuple[int, str], str]) -> dict[str, Sensitivity]:
    """That of the baseline, and those that the recipe's stages measured; a control's would rank at random."""
    from optkit.prune import Sensitivity

    found = {}
    file = root / "sensitivity.json"
    if file.is_file():
        found["the baseline"] = Sensitivity.load(file)
    for record in records:
        if "sensitivity" in record.facts and record.control is None:
            found[f"before “{names[record.step, record.variant]}”"] = Sensitivity.from_dict(record.facts["sensitivity"])
    return found


def _ablation(root: Path) -> dict[str, Any] | None:
    """The ablation that a run is part of: beside its ledger, or in the study's folder above."""
    file = next((f for f in (root / ABLATION, root.absolute().parent / ABLATION) if f.is_file()), None)
    if file is None:
        return None
    found = _result(file, "ablate", (1, 2))
    return found if found["format"] == 2 else _of_accuracy(found) | {"metric": {}}


def _serving(root: Path) -> dict[str, Any] | None:
    """The costs of serving a run."""
    file = root / SERVING
    return _result(file, "cost", (1,)) if file.is_file() else None


def _result(file: Path, command: str, formats: Sequence[int]) -> dict[str, Any]:
    """The JSON that a command left."""
    fix = f"run optkit {command} again, or remove the file"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"not JSON: {error}", key=str(file), fix=fix) from error
    if not isinstance(found, dict) or found.get("format") not in formats:
        raise UserError(f"not what optkit {command} writes", key=str(file), fix=fix)
    return found


def _of_accuracy(part: Any) -> Any:
    """An ablation of format 1, which knew accuracy alone, with the keys of today."""
    if isinstance(part, dict):
        return {"quality" if key == "accuracy" else key: _of_accuracy(value) for key, value in part.items()}
    return [_of_accuracy(value) for value in part] if isinstance(part, list) else part
