"""`reproduce`: a finished run, run anew from its folder and compared with what it recorded, record by record."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.core import ledger
from optkit.core.cache import read_json, write_text
from optkit.core.errors import UserError
from optkit.core.logs import RUN_LOG, log_file
from optkit.core.manifest import PATH, Change, changes, manifest_of_record, read_manifest

if TYPE_CHECKING:
    from optkit.report.reproduced import Comparison

log = logging.getLogger("optkit")
FILE, RUNNING, DONE = "reproduction.json", "running", "done"
OWN_KEYS = ("out", "store", "fresh", "tracker")  # what a reproduction decides itself


@dataclass(frozen=True, repr=False)
class Reproduction:
    """A run that was run anew. It prints as the table that ``optkit reproduce`` shows.

    Attributes:
        of: the folder of the run that was reproduced.
        run: the folder of the new run.
        folder: that it lies in, with its own store and ``reproduction.json``.
        comparison: of the two runs' records.
    """

    of: Path
    run: Path
    folder: Path
    comparison: Comparison

    @property
    def equal(self) -> bool:
        """Whether the answers of every example and the costs are those of the run."""
        return self.comparison.equal

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"of": str(self.of), "run": str(self.run), **self.comparison.to_json()}

    def __repr__(self) -> str:
        from optkit.report.reproduced_table import summary

        return summary(self.comparison, self.of, self.run)


def reproduce(run: str | Path, *overrides: str, out: str | Path | None = None, any_data: bool = False) -> Reproduction:
    """Runs a run's recipe anew, with a store of its own, and compares each of its records with the new one.

    Nothing that the run made is used again, so its folder may be a copy, moved or on another machine. Before any work,
    the data and checkpoints are checked to be those of the run.

    Args:
        run: its folder.
        overrides: such as ``task.path=DIR`` where its data lie elsewhere. Others change the recipe, and are named.
        out: a folder for the new run; None takes ``runs/reproduce-NAME`` in the current folder, or the first of it,
            ``-2``, ``-3``, ... that is not finished. An interrupted reproduction goes on.
        any_data: go on with other data or checkpoints, and name them among the changes.

    Raises:
        UserError: no run, other data or a checkpoint that differs, or a folder that holds something else.
        StageError: a stage failed.
    """
    folder = ledger.one_run(Path(run))
    records = ledger.read(folder)
    if not records or not (folder / "recipe.yaml").is_file():
        lacks = "recipe.yaml" if records else "finished variant"
        raise UserError(f"the run at {folder} has no {lacks}", key="RUN", fix="give a run's whole folder")
    _check_overrides(overrides)
    before = read_manifest(folder) or manifest_of_record(records[0])
    _check_paths(before, overrides)
    home = _home(folder, out)
    found: list[Reproduction] = []
    from optkit.launch import launch

    def job(cfg: Any) -> None:
        found.append(_run(cfg, folder, before, home, any_data))

    launch(str(folder / "recipe.yaml"), overrides, job)
    return found[0]


def _run(cfg: Any, folder: Path, before: Mapping[str, Any], home: Path, any_data: bool) -> Reproduction:
    from optkit.measure.config import NOW
    from optkit.recipe.compose import to_recipe

    recipe = to_recipe(cfg)
    recipe = replace(recipe, out=str(home), store=str(home / "store"), fresh=False)
    recipe = replace(recipe, measure=replace(recipe.measure, when=NOW))  # its records may have come later
    recipe = replace(recipe, text=_placed(recipe.text, home))
    from optkit.core.engine import packages_of
    from optkit.pipeline import run as run_plan
    from optkit.recipe.manifest import describe
    from optkit.recipe.plan import make_plan, threads_of
    from optkit.report import write_report
    from optkit.report.reproduced import compare_runs

    packages = packages_of([recipe.reference, *recipe.engines.values()])
    changed = changes(before, describe(recipe, threads_of(recipe), packages))
    if not any_data:
        _check_data(changed)
    plan = make_plan(recipe)
    _begin(folder, home)
    for change in changed:
        log.info("changed: %s: %s > %s", change.what, change.before, change.now)
    done = run_plan(plan)
    with log_file(done.folder / RUN_LOG):
        write_report(done.folder)
    comparison = compare_runs(folder, done.folder, changed)
    reproduction = Reproduction(folder, done.folder, home, comparison)
    _write(home, {"state": DONE, "ledger": _digest(folder), **reproduction.to_json()})
    return reproduction


def _check_overrides(overrides: Sequence[str]) -> None:
    for one in overrides:
        if not isinstance(one, str) or one.startswith("-"):
            fix = "overrides are texts such as 'task.path=DIR'; one run is reproduced at a time"
            raise UserError(f"{one!r} is no override", key="overrides", value=one, fix=fix)
        key = one.partition("=")[0].lstrip("+~").partition(".")[0].partition("@")[0]
        if key in OWN_KEYS:
            fix = "leave it out; --out DIR says where the new run goes" if key == "out" else "leave it out"
            raise UserError("a reproduction has a folder and a store of its own", key=key, value=one, fix=fix)


def _check_paths(before: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Refuses a path that the run read from and that is not here, unless another is given."""
    for key, entry in before.get("inputs", {}).items():
        paths = entry.get(PATH)
        missing = [one for one in (paths if isinstance(paths, list) else [paths]) if one and not Path(one).exists()]
        given = any(one.partition("=")[0].lstrip("+~") in _around(key) for one in overrides)
        if missing and not given:
            fix = f"give the place where it lies here: {key}=PATH"
            raise UserError(f"the run read {missing[0]}, which is not here", key=key, value=missing[0], fix=fix)


def _around(key: str) -> set[str]:
    """A key, and those of the mappings that hold it."""
    parts = key.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts) + 1)}


def _check_data(changed: Sequence[Change]) -> None:
    """Refuses other data or another checkpoint than the run's."""
    other = [change for change in changed if change.kind == "data"]
    if not other:
        return
    # the data's fingerprint stands for all of a task's paths; a file whose own digest differs is named before it
    first = next((change for change in other if change.what != "task"), other[0])
    named = "; ".join(f"{change.what}: {_short(change.before)} > {_short(change.now)}" for change in other)
    fix = f"set {first.what}=... to what the run read, or give --any-data to go on and see the difference"
    if first.what == "task":
        fix = "set the task's path to the data that the run read, or give --any-data to go on and see the difference"
    raise UserError(f"not what the run read ({named})", key=first.what, fix=fix)


def _short(entry: Any) -> str:
    """The beginning of each fingerprint of an input."""
    if not isinstance(entry, Mapping):
        return "none"
    return ", ".join(f"{name} {str(value)[:12]}" for name, value in entry.items()) or "without a fingerprint"


def _home(folder: Path, out: str | Path | None) -> Path:
    """The folder for a reproduction: a new or empty one, or that of one of the same run that did not end."""
    if out is not None:
        home = Path(out).expanduser()
        if home.exists() and not (home.is_dir() and (not any(home.iterdir()) or _goes_on(home, folder))):
            fix = "give a new folder"
            raise UserError(
                f"{home} holds something else than an unfinished reproduction of this run", key="--out", fix=fix
            )
        return home
    first, number = Path("runs") / f"reproduce-{folder.resolve().name}", 1
    while True:
        home = first if number == 1 else first.with_name(f"{first.name}-{number}")
        if not home.exists() or _goes_on(home, folder):
            return home
        number += 1


def _goes_on(home: Path, folder: Path) -> bool:
    known = read_json(home / FILE) or {}
    return known.get("state") == RUNNING and known.get("ledger") == _digest(folder)


def _begin(folder: Path, home: Path) -> None:
    if not _goes_on(home, folder):
        _write(home, {"state": RUNNING, "ledger": _digest(folder), "of": str(folder)})


def _write(home: Path, state: Mapping[str, Any]) -> None:
    write_text(home / FILE, json.dumps({"format": 1, **state}, indent=1, default=asdict) + "\n", key="--out")


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / ledger.LEDGER_NAME).read_bytes()).hexdigest()


def _placed(text: str, home: Path) -> str:
    """A composed recipe for another folder; its results are sent nowhere."""
    import yaml

    node = yaml.safe_load(text)
    node |= {"out": str(home), "store": str(home / "store")} | ({"tracker": None} if "tracker" in node else {})
    return yaml.safe_dump(node, sort_keys=False, allow_unicode=True)
