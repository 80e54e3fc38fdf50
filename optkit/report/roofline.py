"""What bounds a row: its operations and bytes against the peaks of the machine that it was measured on."""

from __future__ import annotations

from typing import Any

from optkit.core.records import Measurement, Record
from optkit.core.setting import Setting

Row = dict[str, Any]
BYTES = {"fp64": 8, "fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
DECODE = "decode"
NEAR, CLEARLY = 0.5, 1.25  # a share of the bandwidth that bounds; a ratio of two that is no chance
NAMES = (
    "mac_shares", "bytes_moved_modelled", "arithmetic_intensity_modelled", "achieved_gops", "peak_gops", "roofline",
    "bound",
)  # fmt: skip


def roofline(record: Record, latency: Measurement | None, here: dict[str, Any]) -> Row:
    """Achieved operations a second over this machine's measured peak for the precisions in use, and what bounds them.

    The peak of a mixture takes for each precision the time that its share of the MACs needs. Bytes moved are modelled
    (see ``optkit.measure.traffic``): a number takes the bytes of its operators' precision. A model that generates reads
    its weights as the engine holds them, once a request, and, for further tokens, its cache.

    Args:
        record: of a variant.
        latency: of its request.
        here: the engine and the setting.
    """
    empty: Row = dict.fromkeys(NAMES)
    precision, share = record.find("precision", **here), _value(record.find("int8_share", **here))
    macs, peaks = record.find("macs", **Setting.of(here).length), record.environment.get("peaks")
    if precision is None or share is None or macs is None or not macs.value:
        return empty
    rest = precision.conditions["is"]
    shares = {name: value for name, value in ((rest, 1 - share), ("int8", share)) if value > 0}
    found = empty | {"mac_shares": shares}
    units = _units(macs, here)
    operations = 2 * macs.value * units
    moved = _bytes_moved(record, here, units, sum(BYTES.get(name, 4) * value for name, value in shares.items()))
    if moved is not None:
        found |= {"bytes_moved_modelled": moved, "arithmetic_intensity_modelled": operations / moved}
    on_processor = precision.conditions.get("device", "cpu") == "cpu"  # whose peaks are known
    if latency is None or latency.value is None or not on_processor or not peaks or not peaks.keys() >= shares.keys():
        return found
    peak = 1 / sum(value / peaks[name] for name, value in shares.items())
    achieved = operations / latency.value / 1e6
    found |= {"achieved_gops": achieved, "peak_gops": peak, "roofline": achieved / peak}
    if moved is not None:
        reachable = found["arithmetic_intensity_modelled"] * peaks["memory_gb_s"]
        found["bound"] = "memory" if reachable < peak else "compute"
    return found


def bandwidth(
    record: Record,
    latency: Measurement | None,
    here: dict[str, Any],
    baseline: Record | None,
    beside: Measurement | None,
) -> Row:
    """Memory of weights and cache, and for further tokens the share of the bandwidth of reading that is reached.

    ``bound`` says what limits a further token: ``memory`` where at least half of the bandwidth is reached, ``compute``
    where the operations alone take longer than reading does, ``unpacking`` where weights of few bits are read at a
    clearly lower rate than the baseline's on the same engine, and ``overhead`` where it is none of these.

    Args:
        record, latency, here: as for `roofline`.
        baseline: the record of the baseline.
        beside: its latency on the same engine, timed in the same rounds.
    """
    weights, cache = record.find("weights", **here), record.find("cache", **here)
    found: Row = {"weights_mb": _value(weights), "cache_mb": _value(cache)}
    found |= dict.fromkeys(("bandwidth_gb_s", "bandwidth_share"))
    ours, read = _rate(record, latency, here), (record.environment.get("peaks") or {}).get("read_gb_s")
    if ours is None:
        return found
    found["bandwidth_gb_s"] = ours
    line = roofline(record, latency, here)
    if read is None or line["peak_gops"] is None:
        return found
    share = ours / read
    found |= {"bandwidth_share": share}
    theirs = _rate(baseline, beside, here)
    if share >= NEAR:
        return found | {"bound": "memory"}
    if line["arithmetic_intensity_modelled"] * read > line["peak_gops"]:
        return found | {"bound": "compute"}
    if _is_packed(record, here) and theirs is not None and theirs > CLEARLY * ours:
        return found | {"bound": "unpacking"}
    return found | {"bound": "overhead"}


def _units(macs: Measurement, here: dict[str, Any]) -> int:
    """How many examples, or tokens, MACs of a request are."""
    size: int = here["batch_size"]
    if macs.conditions.get("per") != "token" or here.get("workload") == DECODE:
        return size
    return size * int(here["sequence_length"])


def _bytes_moved(record: Record, here: dict[str, Any], units: int, width: float) -> float | None:
    def moved(per: str) -> float | int | None:
        return _value(record.find("numbers_moved_modelled", per=per, **Setting.of(here).length))

    weights, cache = record.find("weights", **here), record.find("cache", **here)
    if here.get("workload") == DECODE and weights is not None and cache is not None and cache.value is not None:
        return 1e6 * (float(weights.conditions["read_mb"]) + cache.value)
    each, once = moved("example") if moved("token") is None else moved("token"), moved("batch")
    if each is None or once is None:
        return None
    if weights is not None:
        return 1e6 * float(weights.conditions["read_mb"]) + width * each * units
    return width * (each * units + once)


def _rate(record: Record | None, latency: Measurement | None, here: dict[str, Any]) -> float | None:
    """1e9 bytes a second that a further token reads."""
    if record is None or latency is None or latency.value is None or here.get("workload") != DECODE:
        return None
    moved = _bytes_moved(record, here, here["batch_size"], 1.0)
    return None if moved is None else moved / latency.value / 1e6


def _is_packed(record: Record, here: dict[str, Any]) -> bool:
    """Whether weights take less than numbers of the engine's precision would."""
    weights, precision = _value(record.find("weights", **here)), record.find("precision", **here)
    params = _value(record.find("params"))
    if weights is None or precision is None or not params:
        return False
    return 1e6 * weights / params < 0.9 * BYTES.get(precision.conditions["is"], 4)


def _value(measurement: Measurement | None) -> float | int | None:
    return measurement.value if measurement else None
