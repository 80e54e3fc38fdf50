"""The variants of a finished run, evaluated and timed again: nothing is made, and the record of before is kept."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optkit.core.allocator import keep_freed_memory
from optkit.core.artifact import Artifact, open_artifact
from optkit.core.engine import packages_of
from optkit.core.environment import environment, same_timing
from optkit.core.errors import StageError, UserError
from optkit.core.ledger import LEDGER_NAME, Ledger, forget_measured, unmeasured, variants_of
from optkit.core.locks import exclusive
from optkit.core.processes import one_process_only
from optkit.core.records import Record, variant_folder
from optkit.core.setting import Setting
from optkit.core.task import HasPrompts, OfAnyLength
from optkit.core.threads import use_threads
from optkit.measure import Bench, Measure, reference_name, settings_of
from optkit.measure.config import prompt_lengths
from optkit.measure.peaks import peaks
from optkit.recipe.manifest import recorded
from optkit.recipe.plan import check_engines, not_run_on, threads_of, trusted_names
from optkit.recipe.recipe import Recipe

log = logging.getLogger(__name__)
Key = tuple[int, str]  # a variant's step and id


def measure_again(
    folder: Path,
    recipe: Recipe,
    wanted: Mapping[Key, Collection[Setting] | None] | None = None,
    *,
    once: bool = False,
    known: Sequence[Record] = (),
    same_engine: bool = True,
) -> None:
    """Measures variants of a run again, each beside the baseline, and appends the records to the run's ledger.

    Those that are not measured yet (``measure=later``) are measured for the first time. The variants are those in the
    run's folder: the store may be gone, and the folder may be a copy.

    Args:
        folder: of the run.
        recipe: the run's, with other batch sizes, engines, threads or places of the data where these are wanted.
        wanted: which variants to measure again, and in which settings; None for a variant takes the recipe's settings,
            and None for all of them every variant in these.
        once: leave out variants that have a record by the time that no other process measures this run.
        known: records of another run. What they say of a variant that is not measured yet is taken over, if it was
            measured in the same way on this machine.
        same_engine: of `Bench`.

    Raises:
        UserError: a variant that is not there, other data than the run's, an engine that does not work here, or a part
            of a run that was measured on another machine.
        StageError: a variant could not be measured; the records before it are kept.

    The process keeps freed memory from here on, as in a run (`keep_freed_memory`).
    """
    one_process_only("optkit measure")
    keep_freed_memory()
    threads, packages = threads_of(recipe), packages_of([recipe.reference, *recipe.engines.values()])
    with (
        exclusive(folder / ".lock", f"measuring {folder.name} again"),
        use_threads(threads),
        recorded(folder, recipe, threads, packages),
    ):
        if once and wanted is not None:
            there = {record.variant for record in Ledger(folder / LEDGER_NAME).records()}
            wanted = {key: settings for key, settings in wanted.items() if key[1] not in there}
        if wanted is None or wanted:
            _measure_again(folder, recipe, threads, wanted, known, same_engine)
        forget_measured(folder)


def configured(recipe: Recipe) -> set[Setting]:
    """The settings that a recipe measures in."""
    return settings_of(recipe.task, recipe.measure)


def _measure_again(
    folder: Path,
    recipe: Recipe,
    threads: int,
    wanted: Mapping[Key, Collection[Setting] | None] | None,
    known: Sequence[Record],
    same_engine: bool,
) -> None:
    here = environment(threads, packages_of([recipe.reference, *recipe.engines.values()]))
    _take_over(folder, recipe, here, known)
    waiting = unmeasured(folder)
    records = variants_of(folder)
    records.sort(key=lambda record: record.variant != record.baseline)  # what others are measured beside comes first
    baseline = next((r for r in records if r.variant == r.baseline), None)
    if baseline is None:
        raise UserError(f"the ledger at {folder} has no baseline", fix="continue the run first")
    _check(baseline, recipe, here, partly=wanted is not None and baseline not in waiting)
    chosen = dict(wanted) if wanted is not None else dict.fromkeys((r.step, r.variant) for r in records)
    todo = _settings(baseline, recipe, chosen)
    needed = [r for r in records if r is baseline or (r.step, r.variant) in todo]
    artifacts = {(record.step, record.variant): _artifact(folder, record) for record in needed}
    here |= {"peaks": peaks(threads)}
    trusted = trusted_names(recipe)
    config = _covering(recipe, [setting for settings in todo.values() for setting in settings])
    bench = Bench(recipe.task, recipe.engines, config, recipe.reference, threads, trusted, recipe.seed, same_engine)
    book = Ledger(folder / LEDGER_NAME)
    base = artifacts[baseline.step, baseline.variant]
    for record in needed:
        settings = todo.get((record.step, record.variant))
        if not settings:
            continue
        artifact, name = artifacts[record.step, record.variant], variant_folder(folder, record).name
        skipped = not_run_on(recipe.engines, artifact.variant.traits)
        if record is not baseline and len(skipped) == len(recipe.engines):
            log.warning("%s is not measured: no engine of the recipe runs it", name)
            continue
        measurements = _measured(bench, artifact, base, record is baseline, name, settings)
        facts = {key: value for key, value in record.facts.items() if key != "not_run_on"}
        again = replace(
            record,
            measurements=measurements,
            environment=here,
            data=recipe.task.facts(),
            facts=facts | ({"not_run_on": skipped} if skipped else {}),
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            measured_again=record.measured_again + (record not in waiting),
        )
        book.append(again)


def _take_over(folder: Path, recipe: Recipe, here: Mapping[str, Any], known: Sequence[Record]) -> None:
    """Appends to a ledger what other runs have measured of variants that wait for it."""
    for record in unmeasured(folder):
        same = (
            other
            for other in known
            if other.variant == record.variant
            and other.data == recipe.task.facts()
            and {m.conditions["split"] for m in other.primary} == {recipe.measure.split}
            and other.reference == reference_name(recipe.engines, recipe.reference)
            and same_timing(here, other.environment)
        )
        if (other := next(same, None)) is not None:
            taken = {name: getattr(other, name) for name in ("measurements", "environment", "data", "time")}
            Ledger(folder / LEDGER_NAME).append(replace(record, **taken))


def _measured(
    bench: Bench, artifact: Artifact, base: Artifact, is_baseline: bool, name: str, settings: Collection[Setting]
) -> list[Any]:
    def say(text: str) -> None:
        log.info("%s: %s", name, text)

    try:
        return bench.measure(artifact, base, is_baseline, say, settings)
    except StageError as error:
        fix = f"{error.fix}; the records before it are kept" if error.fix else "the records before it are kept"
        raise StageError(f"variant '{name}': {error.message}", key=error.key, value=error.value, fix=fix) from error


def _artifact(folder: Path, record: Record) -> Artifact:
    """A record's variant in the run's folder, checked to be the one that was recorded."""
    home = variant_folder(folder, record)
    artifact = open_artifact(home)
    if artifact.variant.id != record.variant:
        message = f"{home} holds variant {artifact.variant.id}, the ledger says {record.variant}"
        raise UserError(message, fix="give the run's folder as the run left it")
    return artifact


def _check(baseline: Record, recipe: Recipe, here: Mapping[str, Any], partly: bool) -> None:
    check_engines(recipe.engines)
    measured, given = baseline.data.get("fingerprint"), recipe.task.fingerprint
    if measured is not None and measured != given:
        message = "these are other data than those that the run was measured on"
        raise UserError(message, key="task", fix="set task.path=... to the same data")
    if baseline.measurements and reference_name(recipe.engines, recipe.reference) != baseline.reference:
        message = f"'{baseline.reference}' is what the run calls the engine that speedups are taken against"
        raise UserError(message, key=f"engines.{baseline.reference}", fix="give the added engine another name")
    if partly and not same_timing(here, baseline.environment):
        message = "the run was measured on another machine, with other threads or other versions of the engines"
        raise UserError(message, key="--rows", fix="--rows all: rows of two machines do not stand in one report")


def _settings(
    baseline: Record, recipe: Recipe, wanted: Mapping[Key, Collection[Setting] | None]
) -> dict[Key, set[Setting]]:
    """The settings of each variant to measure; the baseline is measured wherever it was not yet."""
    usual = configured(recipe)
    todo = {key: set(usual if settings is None else settings) for key, settings in wanted.items()}
    wanted_anywhere = {setting for settings in todo.values() for setting in settings}
    missing = {s for s in wanted_anywhere if baseline.find_primary(**s.conditions) is None}
    if missing:
        todo.setdefault((baseline.step, baseline.variant), set()).update(missing)
    return todo


def _covering(recipe: Recipe, settings: Sequence[Setting]) -> Measure:
    """What to measure, with the batch sizes and lengths of these settings among those of the recipe."""
    measure = recipe.measure
    measure = replace(measure, batch_sizes=sorted({*measure.batch_sizes, *(s.batch_size for s in settings)}))
    lengths = {s.sequence_length for s in settings if s.sequence_length is not None}
    if lengths and isinstance(recipe.task, HasPrompts):
        return replace(measure, prompt_lengths=sorted({*prompt_lengths(measure), *lengths}))
    if lengths and isinstance(recipe.task, OfAnyLength):
        own = measure.sequence_lengths or [recipe.task.conditions()["sequence_length"]]
        return replace(measure, sequence_lengths=sorted({*own, *lengths}))
    return measure
