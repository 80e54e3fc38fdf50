"""The rows that ``optkit measure --rows`` names, and the overrides that it takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from optkit.core import ledger
from optkit.core.errors import UserError, did_you_mean
from optkit.core.flat_keys import flat
from optkit.core.records import variant_folder
from optkit.core.setting import Setting
from optkit.report.caveats import MARKED
from optkit.report.rows import rows

ALL, UNMEASURED = "all", "unmeasured"
MEASURES = ("measure", "engines", "task", "threads", "tracker")  # what a measurement may have its own way
SIZES = ("measure.batch_sizes", "measure.sequence_lengths", "measure.prompt_lengths")
Wanted = dict[tuple[int, str], set[Setting] | None]


def select(folder: Path, names: str | None, within: set[Setting] | None = None) -> Wanted | None:
    """The variants of a run to measure again, each with its settings; None for all variants in the recipe's settings.

    Args:
        folder: of the run.
        names: ``all``, ``unmeasured`` (what is made and not measured yet), ``marked`` (the rows whose timing cannot be
            trusted), or names of variants or stages, with commas between. None is ``unmeasured`` where there is any of
            it, and else ``all``.
        within: settings to which the marked rows are limited; None limits them to none.

    Raises:
        UserError: a name that the run does not have, or marked rows where it has none.
    """
    waiting = ledger.unmeasured(folder)
    if names is None:
        names = UNMEASURED if waiting else ALL
    if names == ALL:
        return None
    if names == UNMEASURED:
        if not waiting:
            raise UserError("all of this run is measured", key="--rows", value=names, fix="leave it out")
        return {(record.step, record.variant): None for record in waiting}
    records = ledger.variants_of(folder)
    if names == MARKED:
        found: Wanted = {}
        for row in rows(records):
            setting = Setting.of(row)
            if row["caveat"] and (within is None or setting in within):
                settings = found.setdefault((row["step"], row["variant"]), set())
                assert settings is not None
                settings.add(setting)
        if not found:
            raise UserError("no row of this run is marked", key="--rows", value=names, fix="its timings can be trusted")
        return found
    wanted: Wanted = {}
    for name in names.split(","):
        own = [r for r in records if name in (r.stage, variant_folder(folder, r).name)]
        if not own:
            known = [ALL, MARKED, UNMEASURED, *(variant_folder(folder, r).name for r in records)]
            raise UserError(f"no variant '{name}' in this run", key="--rows", value=name, fix=did_you_mean(name, known))
        wanted |= {(r.step, r.variant): None for r in own}
    return wanted


def changed_keys(folder: Path, text: str) -> set[str]:
    """The keys in which a composed recipe differs from the one that a run was made with.

    Args:
        folder: of the run.
        text: the recipe, as YAML.

    Raises:
        UserError: one that decides the variants, or what an engine's name stands for: nothing is made anew.
    """
    before = dict(flat(_mapping(folder / "recipe.yaml")))
    now = dict(flat(yaml.safe_load(text)))
    changed = {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)}
    both = _engines(before) & _engines(now)
    for key in sorted(changed):
        top, _, rest = key.partition(".")
        if top not in MEASURES:
            fix = "leave it out; optkit run makes other variants"
            raise UserError("optkit measure makes no variants", key=key, value=now.get(key), fix=fix)
        if top == "engines" and rest.partition(".")[0] in both:
            fix = "add it under a name of its own: +engine@engines.NAME=..."
            raise UserError("the run's rows on this engine were measured with another value", key=key, fix=fix)
    return changed


def _engines(keys: Mapping[str, Any]) -> set[str]:
    return {key.split(".")[1] for key in keys if key.startswith("engines.")}


def _mapping(file: Path) -> Mapping[str, Any]:
    node = yaml.safe_load(file.read_text(encoding="utf-8"))
    return node if isinstance(node, Mapping) else {}
