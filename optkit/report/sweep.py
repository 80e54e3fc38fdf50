"""Several runs of one recipe: the keys in which they differ, and means over one of these keys."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optkit.core import ledger
from optkit.core.errors import UserError, did_you_mean
from optkit.core.metric import SHARE
from optkit.core.records import Measurement, Record, unpack_values
from optkit.core.setting import Setting
from optkit.core.statistics import Estimate, Values, log_error, mean_over_seeds, mean_with_errors, weighted_metric
from optkit.report.recipes import flat_recipe
from optkit.report.rows import Row, is_trusted, rows
from optkit.report.unmeasured import measured_runs

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class SweptRun:
    """One run of a sweep.

    Attributes:
        folder: of the run.
        records: its records.
        settings: the keys in which the runs of the sweep differ, with this run's values.
    """

    folder: Path
    records: list[Record]
    settings: Settings

    @property
    def rows(self) -> list[Row]:
        return [row | {"settings": dict(self.settings)} for row in rows(self.records)]


def open_sweep(paths: Sequence[str | Path]) -> list[SweptRun]:
    """The runs in run folders and in folders of these, each with the keys in which they differ.

    Raises:
        UserError: a path holds no ledger, or a line that is not a record; nothing is measured yet.
    """
    folders = measured_runs(paths)
    recipes = [flat_recipe(folder) for folder in folders]
    differing = differing_keys(recipes)
    found = [
        SweptRun(folder, ledger.unique(ledger.read(folder)), {key: recipe.get(key) for key in differing})
        for folder, recipe in zip(folders, recipes, strict=True)
    ]
    return sorted(found, key=lambda run: [in_order(value) for value in run.settings.values()])


def differing_keys(recipes: Sequence[Settings]) -> list[str]:
    """The keys whose values are not the same in all recipes, in their order; a recipe that is not known is left out."""
    known = [recipe for recipe in recipes if recipe]
    keys = dict.fromkeys(key for recipe in known for key in recipe)
    return [key for key in keys if any(recipe.get(key) != known[0].get(key) for recipe in known)]


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """As much of the end of each key as tells it from the others."""
    found = {}
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        found[key] = next(end for end in ends if sum(("." + k).endswith("." + end) for k in keys) == 1)
    return found


def in_order(value: Any) -> tuple[bool, Any]:
    """Sorts a key's values: numbers by size, before everything else by its text."""
    return (False, value) if isinstance(value, (int, float)) else (True, str(value))


def shown(value: Any) -> str:
    """A key's value as a cell."""
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def over(runs: Sequence[SweptRun], key: str) -> list[Row]:
    """Means over the runs that differ in one key only, such as ``seed``.

    Runs that share all other keys form a group, and there is a row for each group, stage, engine and setting. The
    interval of the metric is over examples and runs (crossed random effects, `mean_over_seeds`), that of the change
    against the baseline likewise. Speedups are geometric means. Timings that cannot be trusted are left out;
    ``timed_runs`` counts the others. ``NAME_sd`` is the standard deviation over runs; it is None for one run.

    Raises:
        UserError: the runs do not differ in this key.
    """
    differing = list(runs[0].settings) if runs else []
    if key not in differing:
        fix = did_you_mean(key, differing) if differing else "give several runs, or the folder of a sweep"
        raise UserError(f"these {len(runs)} runs do not differ in '{key}'", key="--over", value=key, fix=fix)
    groups: dict[str, list[SweptRun]] = {}
    for run in runs:
        rest = {name: value for name, value in run.settings.items() if name != key}
        groups.setdefault(str(rest), []).append(run)
    found = [row for group in groups.values() for row in _over_group(group, key)]

    def place(row: Row) -> tuple[Any, ...]:
        values = [in_order(value) for value in row["settings"].values()]
        return Setting.of(row), row["control"] or "", values, row["step"], row["engine"]

    return sorted(found, key=place)


def _over_group(group: Sequence[SweptRun], key: str) -> list[Row]:
    places: dict[tuple[Any, ...], list[tuple[SweptRun, Row]]] = {}
    for run in group:
        for row in run.rows:
            at = (row["control"], row["step"], row["stage"], tuple(row["chain"]), row["engine"], Setting.of(row))
            places.setdefault(at, []).append((run, row))
    return [_mean(found, key) for found in places.values()]


def _mean(found: Sequence[tuple[SweptRun, Row]], key: str) -> Row:
    run, first = found[0]
    own = [row for _, row in found]
    named = (
        "step", "stage", "technique", "chain", "control", "engine", "reference", "batch_size", "sequence_length",
        "workload", "threads", "metric", "unit", "metric_kind", "higher_is_better", "size_mb", "macs",
    )  # fmt: skip
    settings = {name: value for name, value in run.settings.items() if name != key}
    measured = [_measured(r, row) for r, row in found]
    row: Row = {
        "run": "",
        "settings": settings,
        "over": key,
        "runs": len(found),
        "values": [r.settings[key] for r, _ in found],
    }
    row |= {name: first[name] for name in named} | {"caveat": None}
    row |= _estimate("quality", _quality(own, measured), [r["quality"] for r in own])
    row |= _estimate("quality_delta", _delta(found, measured), [r["quality_delta"] for r in own])
    timed = [r for r in own if is_trusted(r)]
    row["timed_runs"] = len(timed)
    for name in ("speedup", "speedup_same_engine"):
        row |= _estimate(name, _speedup(timed, name), [r[name] for r in timed])
    row["latency_p50_ms"] = float(np.mean([r["latency_p50_ms"] for r in timed])) if timed else None
    return row


def _estimate(name: str, found: Estimate | None, values: Sequence[float | None]) -> Row:
    known = [value for value in values if value is not None]
    deviation = float(np.std(known, ddof=1)) if len(known) > 1 else None
    if found is None:
        return {name: None, f"{name}_ci": None, f"{name}_sd": None}
    return {name: found.value, f"{name}_ci": found.ci, f"{name}_sd": deviation}


def _measured(run: SweptRun, row: Row) -> Measurement:
    record = next(r for r in run.records if (r.variant, r.step) == (row["variant"], row["step"]))
    found = record.find_primary(engine=row["engine"], **Setting.of(row).conditions)
    assert found is not None
    return found


def _quality(own: Sequence[Row], measured: Sequence[Measurement]) -> Estimate:
    if len(own) == 1:
        value = own[0]["quality"]
        return Estimate(value, *(own[0]["quality_ci"] or (-math.inf, math.inf)))
    if len({m.n for m in measured}) > 1:
        found = _of_runs([row["quality"] for row in own])
    else:
        found = mean_over_seeds(_stacked(measured).astype(np.float64))
    if own[0]["metric_kind"] != SHARE:
        return found
    return Estimate(found.value, max(found.low, 0.0), min(found.high, 1.0))


def _delta(found: Sequence[tuple[SweptRun, Row]], measured: Sequence[Measurement]) -> Estimate | None:
    if any(row["quality_delta"] is None for _, row in found):
        return None
    if len(found) == 1:
        row = found[0][1]
        return Estimate(row["quality_delta"], *row["quality_delta_ci"])
    if all(row["step"] == 0 and row["engine"] == row["reference"] for _, row in found):
        return Estimate(0.0, 0.0, 0.0)
    baselines = [_baseline(run, row) for run, row in found]
    if len({m.n for m in measured}) > 1:
        return _of_runs([row["quality_delta"] for _, row in found])
    return weighted_metric([1.0, -1.0], [_stacked(measured), _stacked(baselines)])


def _stacked(measured: Sequence[Measurement]) -> Values:
    """The values of the examples of each run, ``(runs, N)``."""
    values = [unpack_values(m.raw) for m in measured]
    if all(v.dtype == np.bool_ for v in values):
        return np.stack(values).astype(np.bool_)
    return np.stack(values).astype(np.float64)


def _baseline(run: SweptRun, row: Row) -> Measurement:
    baseline = next(r for r in run.records if r.variant == r.baseline)
    found = baseline.find_primary(engine=row["reference"], **Setting.of(row).conditions)
    assert found is not None
    return found


def _speedup(timed: Sequence[Row], name: str) -> Estimate | None:
    ratios = [Estimate(row[name], *row[f"{name}_ci"]) for row in timed if row[name] is not None]
    if not ratios:
        return None
    logs = np.array([math.log(ratio.value) for ratio in ratios])
    found = mean_with_errors(logs, np.array([log_error(ratio) for ratio in ratios]))
    return Estimate(*(math.exp(value) for value in (found.value, found.low, found.high)))


def _of_runs(values: Sequence[float]) -> Estimate:
    """Mean with Student's interval over runs whose examples are not the same."""
    return mean_with_errors(np.asarray(values, dtype=np.float64), np.zeros(len(values)))
