"""The rows of a report: one for each variant, engine and batch size. Every ratio is computed here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optkit.core.caveat import is_disturbed, timing_caveat
from optkit.core.environment import has_int8_dot_product
from optkit.core.ledger import unique
from optkit.core.records import Measurement, Record
from optkit.core.setting import Setting
from optkit.core.statistics import Estimate, median, quotient, ratio_of_medians
from optkit.report.batch_sizes import MIN_CALLS, add_limits
from optkit.report.multiple_testing import correct_for_many
from optkit.report.paired import counts, difference, losses_within, same_metric, tolerance_unit
from optkit.report.roofline import bandwidth, roofline

Row = dict[str, Any]
TIMED = ("latency_p50_ms", "speedup", "speedup_same_engine")


def rows(records: Iterable[Record]) -> list[Row]:
    """One row for each variant, engine and setting, ordered by run, setting, step and engine.

    A setting is a batch size, a length of texts, and the ``workload`` of a model that generates: reading prompts
    (``prefill``) or a further token behind them (``decode``); None is a forward pass. A quality that holds in all
    settings stands in each that its engine was timed in.

    ``quality`` is the task's first metric, whose name, unit and direction the row says; ``metrics`` has the others.
    ``speedup`` and ``quality_delta`` are against the run's baseline on the engine named in ``reference`` (PyTorch
    eager in fp32, on the processor) at the same batch size and threads, ``speedup_same_engine`` against the baseline on
    the same engine, ``quality_delta_parent`` against the variant that the stage was given, on the same engine.
    ``latency_p99_ms`` is of ``latency_calls`` calls. What was not measured is None, and so is a p99 of fewer than 300
    calls. ``caveat`` says why the timing of a row cannot be trusted; such a row is shown, marked, and left out of every
    conclusion.
    """
    kept = unique(records)
    by_variant = {(r.run, r.variant): r for r in kept}
    found = [
        _row(record, by_variant, quality, setting)
        for record in kept
        for quality in record.primary
        for setting in record.settings_of(quality)
    ]
    order = {run: place for place, run in enumerate(dict.fromkeys(r.run for r in kept))}
    correct_for_many(found)
    add_limits(found)
    return sorted(
        found,
        key=lambda r: (
            order[r["run"]],
            Setting.of(r),
            r["control"] or "",
            r["step"],
            r["engine"],
        ),
    )


def describe_setting(row: Row) -> str:
    """Where a row was measured, in words."""
    return f"{row['engine']} at {Setting.of(row)}"


def relative_speedup(row: Row, other: Row) -> Estimate:
    """How many times as fast a row is as another that was timed apart: its speedup over the other's.

    Args:
        row, other: both trusted.
    """
    return quotient(*(Estimate(r["speedup"], *r["speedup_ci"]) for r in (row, other)))


def with_confidence(row: Row, records: Iterable[Record], confidence: float) -> Row:
    """A row with other intervals of its speedup and of its change against the baseline.

    Args:
        row: one of `rows`.
        records: those that it was made of, among others.
        confidence: of the intervals, such as 0.99.
    """
    by_variant = {(r.run, r.variant): r for r in unique(records)}
    record, setting = by_variant[row["run"], row["variant"]], Setting.of(row).conditions
    found, quality = dict(row), record.find_primary(engine=row["engine"], **setting)
    assert quality is not None
    baseline = by_variant.get((record.run, record.baseline))
    theirs = same_metric(quality, baseline, setting | {"engine": row["reference"]})
    if theirs is not None and theirs is not quality:
        found["quality_delta_ci"] = difference(quality, theirs, confidence).delta.ci
    latency = record.find("latency", of="variant", engine=row["engine"], **setting)
    beside = record.beside(latency, record.reference)
    if row["speedup"] is not None and latency is not None and beside is not None and beside is not latency:
        found["speedup_ci"] = ratio_of_medians(_samples(beside), _samples(latency), confidence=confidence).ci
    return found


def is_trusted(row: Row) -> bool:
    """Whether a row was timed beside the baseline and has no caveat."""
    return row["speedup"] is not None and row["caveat"] is None


def _row(record: Record, by_variant: dict[tuple[str, str], Record], quality: Measurement, setting: Setting) -> Row:
    engine = quality.conditions["engine"]
    here = {"engine": engine} | setting.conditions
    latency = record.find("latency", of="variant", **here)
    baseline = by_variant.get((record.run, record.baseline))
    parent = by_variant.get((record.run, record.parent or ""))
    row: Row = {
        "run": record.run,
        "recipe": record.recipe,
        "variant": record.variant,
        "parent": record.parent,
        "step": record.step,
        "stage": record.stage,
        "technique": record.technique,
        "chain": record.chain,
        "control": record.control,
        "engine": engine,
        "reference": record.reference,
        "device": _device(record, here),
        "int8_dot_product": has_int8_dot_product(record.environment),
        "batch_size": setting.batch_size,
        "threads": quality.conditions["threads"],
        "sequence_length": setting.sequence_length,
        "workload": setting.workload,
        "split": quality.conditions["split"],
        "examples": quality.n,
        **_about(quality),
        "quality": quality.value,
        "quality_ci": quality.ci,
    }
    on_reference = here | {"engine": (baseline or record).reference}
    row |= _delta("quality_delta", quality, baseline, on_reference)
    row |= _loss_within(quality, baseline, on_reference)
    row |= _delta("quality_delta_parent", quality, parent, here)
    row |= _margin(record, by_variant, quality, here)
    row["metrics"] = {m.name: _other_metric(m, baseline, on_reference) for m in _others(record, here)}
    row |= _latency(record, latency, setting.batch_size)
    row |= _speedup("speedup", latency, record.beside(latency, record.reference))
    row |= _speedup("speedup_same_engine", latency, record.beside(latency, engine))
    row |= _trust(record, latency, row)
    return row | {
        "peak_memory_mb": _value(record.find("peak_memory", **here)),
        "load_s": _value(record.find("load", **here)),
        "size_mb": _value(record.find("size")),
        "params": _value(record.find("params")),
        "macs": _value(record.find("macs", **setting.length) or record.find("macs")),
        "tokenize_ms": _value(record.find("tokenization", **setting.conditions)),
        "int8_share": _value(record.find("int8_share", **here)),
        "sparse_share": _value(record.find("sparse_share", **here)),
        "sparsity": _value(record.find("sparsity")),
        "nonzeros": _value(record.find("nonzeros")),
        "bytes_in": _value(record.find("bytes_in", **here)),
        "bytes_out": _value(record.find("bytes_out", **here)),
        "energy_j": _value(record.find("energy", **here)),
        **roofline(record, latency, here),
        **bandwidth(record, latency, here, baseline, record.beside(latency, engine)),
        "compile_s": _value(record.find("compile", **here)),
        "stage_cost_s": record.cost.wall_s,
        "stage_device_s": record.cost.device_s,
    }


def _value(measurement: Measurement | None) -> float | int | None:
    return measurement.value if measurement else None


def _about(quality: Measurement) -> Row:
    assert quality.quality is not None
    about = quality.quality
    return {
        "metric": quality.name,
        "unit": quality.unit,
        "metric_kind": about.kind,
        "higher_is_better": about.higher_is_better,
    }


def _others(record: Record, here: dict[str, Any]) -> list[Measurement]:
    """The metrics besides the first, in a row's place."""
    return [m for m in record.measurements if m.quality and not m.quality.primary and m.holds(**here)]


def _other_metric(quality: Measurement, baseline: Record | None, conditions: dict[str, Any]) -> Row:
    delta = _delta("delta", quality, baseline, conditions)
    return {**_about(quality), "value": quality.value, "ci": quality.ci, **delta}


def _delta(name: str, quality: Measurement, other: Record | None, conditions: dict[str, Any]) -> Row:
    """A metric less that of another record's variant, paired example by example."""
    against = same_metric(quality, other, conditions)
    names = (name, f"{name}_counts", f"{name}_ci", f"{name}_p", f"{name}_detectable")
    if against is None:
        empty: Row = dict.fromkeys(names)
        return empty
    if against is quality:
        return dict(zip(names, (0.0, [0, 0], [0.0, 0.0], 1.0, 0.0), strict=True))
    found = difference(quality, against)
    moved = counts(quality, against)
    cells = (found.delta.value, moved and [*moved], found.delta.ci, found.p_value, found.detectable)
    return dict(zip(names, cells, strict=True))


def _loss_within(quality: Measurement, baseline: Record | None, conditions: dict[str, Any]) -> Row:
    """p-values of "the loss is at least this large", by tolerance, and what the tolerances are multiplied with."""
    against = same_metric(quality, baseline, conditions)
    if against is None:
        return {"quality_loss_within_p": None, "tolerance_unit": None}
    return {"quality_loss_within_p": losses_within(quality, against), "tolerance_unit": tolerance_unit(against)}


def _margin(
    record: Record, by_variant: dict[tuple[str, str], Record], quality: Measurement, here: dict[str, Any]
) -> Row:
    """By how much the recipe's own variant is better than a control's at the same stage, in the unit of the metric.

    It is above 0 where the own variant's metric is higher, whether higher is better or not.
    """
    empty: Row = dict.fromkeys(("control_margin", "control_margin_ci", "control_margin_p"))
    if record.control is None:
        return empty
    same = (r for r in by_variant.values() if (r.run, r.step, r.stage) == (record.run, record.step, record.stage))
    own = next((r for r in same if r.control is None), None)
    theirs = same_metric(quality, own, here)
    if theirs is None:
        return empty
    found = difference(theirs, quality)
    return {"control_margin": found.delta.value, "control_margin_ci": found.delta.ci, "control_margin_p": found.p_value}


def _latency(record: Record, latency: Measurement | None, batch_size: int) -> Row:
    if latency is None or latency.value is None:
        names = ("p50_ms", "p50_ms_ci", "p99_ms", "calls")
        empty: Row = dict.fromkeys(
            (*(f"latency_{name}" for name in names), "throughput", "throughput_unit", "p99_limit_ms")
        )
        return empty
    samples = _samples(latency)
    # made anew: older ledgers hold limits outside the rounds
    found = median(samples)
    return {
        "latency_p50_ms": found.value,
        "latency_p50_ms_ci": found.ci,
        "latency_p99_ms": float(np.quantile(samples, 0.99)) if samples.size >= MIN_CALLS else None,
        "latency_calls": samples.size,
        "throughput": latency.conditions.get("count", batch_size) / found.value * 1e3,
        "throughput_unit": f"{latency.conditions.get('unit', 'examples')}/s",
        "p99_limit_ms": latency.conditions.get("p99_limit_ms"),
    }


def _trust(record: Record, latency: Measurement | None, row: Row) -> Row:
    """Whether other work ran while a row or what it is compared with was timed, and why its timing is in doubt."""
    if latency is None or latency.value is None:
        return {"disturbed": None, "caveat": None}
    beside = (record.beside(latency, engine) for engine in (record.reference, row["engine"]))
    series = [latency, *(m for m in beside if m is not None)]
    intervals = [row[f"{name}_ci"] for name in TIMED if row[name] is not None]
    return {"disturbed": is_disturbed(series), "caveat": timing_caveat(series, intervals)}


def _device(record: Record, here: dict[str, Any]) -> str:
    """``cpu``, or the name of a GPU."""
    precision = record.find("precision", **here)
    return "cpu" if precision is None else precision.conditions.get("device", "cpu")


def _speedup(name: str, latency: Measurement | None, reference: Measurement | None) -> Row:
    """How many times faster than the baseline on an engine, from the series timed in the same rounds."""
    if latency is None or latency.value is None or reference is None or reference.value is None:
        return {name: None, f"{name}_ci": None}
    if reference is latency:
        return {name: 1.0, f"{name}_ci": [1.0, 1.0]}
    ratio: Estimate = ratio_of_medians(_samples(reference), _samples(latency))
    return {name: ratio.value, f"{name}_ci": ratio.ci}


def _samples(latency: Measurement) -> NDArray[np.float64]:
    return np.asarray(latency.raw, dtype=np.float64)
