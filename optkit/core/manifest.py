"""The manifest of a run, ``manifest.json``: all that its results follow from, and how two of them differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optkit.core.errors import UserError
from optkit.core.flat_keys import flat
from optkit.core.records import Record

MANIFEST = "manifest.json"
FORMAT = 1
RECIPE, DATA, OPTKIT, CODE, MACHINE, PACKAGE = "recipe", "data", "optkit", "code", "machine", "package"
# the sections that hold one entry for each thing, and what kind of thing it is
SECTIONS = {"inputs": DATA, "code": CODE, "environment": MACHINE, "installed": PACKAGE}
PLACES = ("out", "store", "fresh", "sweep", "fail_fast")  # keys of a recipe that say where a run lies, not what it is
SURROUNDINGS = ("python", "platform", "threads", "cpu", "gpu", "machine")
ALSO_NOT = ("tracker",)  # nor where its results are sent
PATH = "path"  # of an input: where it was found says nothing about what it is


@dataclass(frozen=True)
class Change:
    """One thing in which two manifests differ.

    Attributes:
        kind: `RECIPE`, `DATA`, `OPTKIT`, `CODE`, `MACHINE` or `PACKAGE`.
        what: the key, the package, ...
        before: its value in the first; None where it has none.
        now: in the second.
    """

    kind: str
    what: str
    before: Any
    now: Any


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a run's folder; None of a run that was made before there were any.

    Raises:
        UserError: a file that is no manifest, or of a format that this optkit does not know.
    """
    file = folder / MANIFEST
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        fix = "restore the file, or remove it: the ledger and recipe.yaml are enough to run it anew"
        raise UserError(f"not a manifest: {error}", key=str(file), fix=fix) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        form = found.get("format") if isinstance(found, dict) else None
        fix = "read it with the optkit that wrote it"
        raise UserError(f"written in format {form}, this optkit reads {FORMAT}", key=str(file), fix=fix)
    return found


def manifest_of_record(record: Record) -> dict[str, Any]:
    """What a record says of what a manifest would say: of a run that has none."""
    packages = dict(record.environment.get("packages", {}))
    own = packages.pop("optkit", None)
    return {
        "format": FORMAT,
        "partial": True,
        "run": record.run,
        "inputs": {"task": {"fingerprint": record.data["fingerprint"]}} if "fingerprint" in record.data else {},
        "optkit": {"version": own},
        "environment": surroundings(record.environment),
        "installed": packages,
    }


def surroundings(environment: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of a record's environment: Python, system, processor, GPU, threads; packages stand apart."""
    return {key: environment[key] for key in SURROUNDINGS if key in environment}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """What differs from one manifest to another; what one of them does not say differs in nothing.

    Paths do not count, and neither does a commit where the source is the same.
    """
    found = []
    if "recipe" in before and "recipe" in now:
        found += _entries_that_differ(RECIPE, *(_keys(one["recipe"]) for one in (before, now)))
    found += _of_optkit(before.get("optkit") or {}, now.get("optkit") or {})
    for section, kind in SECTIONS.items():
        if section in before and section in now:
            ours, theirs = (_comparable(one[section]) for one in (before, now))
            if before.get("partial") or now.get("partial"):
                both = ours.keys() & theirs.keys()
                ours, theirs = ({key: of[key] for key in both} for of in (ours, theirs))
            found += _entries_that_differ(kind, ours, theirs)
    return found


def _entries_that_differ(kind: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[Change]:
    return [
        Change(kind, what, ours.get(what), theirs.get(what))
        for what in sorted(ours.keys() | theirs.keys())
        if ours.get(what) != theirs.get(what)
    ]


def _keys(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return dict(flat({key: value for key, value in recipe.items() if key not in ALSO_NOT}))


def _comparable(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: {name: part for name, part in value.items() if name != PATH} if isinstance(value, Mapping) else value
        for key, value in entries.items()
    }


def _of_optkit(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[Change]:
    what = "source" if "source" in ours and "source" in theirs else "version"
    if ours.get(what) == theirs.get(what):
        return []
    return [Change(OPTKIT, "optkit", ours.get("version"), theirs.get("version"))]
