"""What is measured and what is written down: Measurement, Cost, Record."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optkit.core.setting import Setting

SCHEMA = 4
# the engine that speedups are taken against
REFERENCE = "eager"
READABLE = (1, 2, 3, SCHEMA)
# the measurement that holds the class of each example, so that two runs compare to the last answer
ANSWERS = "answers"
# the parts of a setting: a measurement that does not name one holds whatever it is
OF_SETTING = ("batch_size", "sequence_length", "workload")


@dataclass(frozen=True)
class Quality:
    """What a figure of quality is, so that a reader of the record needs no metric.

    Attributes:
        kind: which values there are, see `optkit.core.metric`.
        higher_is_better: which way is up.
        primary: whether it is the one that verdicts, budgets and searches use.
    """

    kind: str
    higher_is_better: bool
    primary: bool


ACCURACY = Quality("share", higher_is_better=True, primary=True)  # what ledgers before schema 4 hold


@dataclass(frozen=True)
class Measurement:
    """One measured quantity of one variant under stated conditions.

    Attributes:
        name: what was measured (``accuracy``, ``latency``, ``size``, ``macs``, ...).
        value: the figure; None where it could not be had, never a guess.
        unit: ``ms``, ``MB``, ``1`` for shares and counts.
        ci: its 95% interval, where there is one.
        n: how many observations it rests on.
        conditions: engine, batch_size, threads, split and whatever else the figure depends on.
        raw: the observations themselves: latency rounds, what each example adds to a metric, or its class
            (`unpack_values`).
        quality: what the metric is, where it is one. Since schema 4.
    """

    name: str
    value: float | int | None
    unit: str = "1"
    ci: list[float] | None = None
    n: int | None = None
    conditions: dict[str, Any] = field(default_factory=dict)
    raw: Any = None
    quality: Quality | None = None

    def holds(self, **conditions: Any) -> bool:
        """Whether it was taken under these conditions; parts of a setting that it does not name may be any."""
        own = self.conditions
        return all(own.get(key) == value for key, value in conditions.items() if key in own or key not in OF_SETTING)


@dataclass(frozen=True)
class Cost:
    """What a stage cost to run: wall seconds, and seconds the device (here, all cores together) was busy."""

    wall_s: float
    device_s: float


@dataclass(frozen=True)
class Record:
    """One variant of one run, measured: a line of the ledger.

    Attributes:
        data: the task's account of its data: fingerprint, examples in each split, share of texts cut short, ...
        chain: names of the stages that made it from the baseline; empty for the baseline. Since schema 2.
        control: the control that this variant belongs to; None for the recipe's own chain. Since schema 2.
        measured_again: how often the variant had been measured before (``optkit measure``). A later measurement takes
            the place of an earlier one under the same conditions; both stay in the ledger. Since schema 3.
    """

    run: str
    recipe: str
    variant: str
    parent: str | None
    baseline: str
    step: int
    stage: str
    technique: str
    params: dict[str, Any]
    facts: dict[str, Any]
    measurements: list[Measurement]
    cost: Cost
    environment: dict[str, Any]
    time: str
    data: dict[str, Any] = field(default_factory=dict)
    chain: list[str] = field(default_factory=list)
    control: str | None = None
    measured_again: int = 0
    schema: int = SCHEMA

    @property
    def key(self) -> tuple[str, int, str, int]:
        """What makes a record the same record: a ledger holds each key once."""
        return (*self.place, self.measured_again)

    @property
    def place(self) -> tuple[str, int, str]:
        """The variant and where it stands in its run, however often it was measured."""
        return (self.run, self.step, self.variant)

    @property
    def reference(self) -> str:
        """The name of the reference engine, on which the baseline is timed beside every variant.

        Its measurements say so, since the recipe may use any name. Ledgers before schema 3 do not: it is `REFERENCE`.
        """
        marked = (m.conditions["engine"] for m in self.measurements if m.conditions.get("reference"))
        return next(marked, REFERENCE)

    def find(self, name: str, **conditions: Any) -> Measurement | None:
        """The first measurement of this name that holds under these conditions."""
        return next((m for m in self.measurements if m.name == name and m.holds(**conditions)), None)

    def beside(self, latency: Measurement | None, engine: str) -> Measurement | None:
        """The baseline on an engine, timed in the same rounds as one of this record's latencies."""
        if latency is None:
            return None
        together = {"interleaved": latency.conditions["interleaved"], "engine": engine}
        found = self.find("latency", of="baseline", **together)
        if found is None and self.variant == self.baseline:
            found = self.find("latency", of="variant", **together)
        return found

    @property
    def primary(self) -> list[Measurement]:
        """The primary metric, in each setting and on each engine."""
        return [m for m in self.measurements if m.quality and m.quality.primary]

    def find_primary(self, **conditions: Any) -> Measurement | None:
        """The primary metric that holds under these conditions."""
        return next((m for m in self.primary if m.holds(**conditions)), None)

    def settings_of(self, quality: Measurement) -> list[Setting]:
        """The setting that a metric was measured in; of one that holds in all, those that its engine was timed in."""
        if "batch_size" in quality.conditions:
            return [Setting.of(quality.conditions)]
        timed = {"of": "variant", "engine": quality.conditions["engine"]}
        return sorted({Setting.of(m.conditions) for m in self.measurements if m.name == "latency" and m.holds(**timed)})

    @property
    def settings(self) -> list[Setting]:
        """All settings that it was judged in."""
        return sorted({setting for quality in self.primary for setting in self.settings_of(quality)})

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, the inverse of `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Record:
        """The record in ``data``, of any schema in `READABLE`; raises KeyError or TypeError when it is not one."""
        fields = dict(data) | {"schema": SCHEMA}
        fields["measurements"] = [_measurement(m) for m in fields["measurements"]]
        fields["cost"] = Cost(**fields["cost"])
        return cls(**fields)


def _measurement(data: dict[str, Any]) -> Measurement:
    quality = data.get("quality")
    if "quality" not in data and data["name"] == "accuracy":
        return Measurement(**data, quality=ACCURACY)
    return Measurement(**(data | {"quality": Quality(**quality) if quality else None}))


def variant_folder(folder: Path, of: Record) -> Path:
    """Where a record's variant lies in its run's folder: of the recipe's own chain, another chain or a control."""
    return folder_of(folder, of.step, of.stage, of.chain, of.control)


def folder_of(folder: Path, step: int, stage: str, chain: Sequence[str], control: str | None) -> Path:
    """`variant_folder` of a variant whose place in the run is known."""
    variants = folder / "variants"
    if control:
        return variants / f"{control}-{step}-{stage}"
    branch = variants / f"{step}-{'+'.join(chain)}"
    return branch if branch.is_dir() else variants / f"{step}-{stage}"


def pack_values(values: NDArray[np.floating[Any]] | NDArray[np.bool_]) -> dict[str, Any]:
    """Numbers ``(N,)`` as JSON: a bit each where they are 0 and 1, else compressed 32-bit floats."""
    whole = np.round(values.astype(np.float64), 9)
    if np.isin(whole, (0, 1)).all():
        bits = np.packbits(whole.astype(np.bool_)).tobytes()
        return {"n": int(values.size), "bits": base64.b64encode(bits).decode("ascii")}
    packed = zlib.compress(values.astype("<f4").tobytes())
    return {"n": int(values.size), "float32": base64.b64encode(packed).decode("ascii")}


def pack_classes(classes: NDArray[np.integer[Any]]) -> dict[str, Any]:
    """Numbers of classes ``(N,)`` as JSON: compressed 32-bit integers."""
    packed = zlib.compress(classes.astype("<i4").tobytes())
    return {"n": int(classes.size), "int32": base64.b64encode(packed).decode("ascii")}


def unpack_values(packed: dict[str, Any]) -> NDArray[np.bool_] | NDArray[np.float64]:
    """The inverse of `pack_values` and `pack_classes`, ``(N,)``: bool where bits were kept."""
    if "bits" in packed:
        raw = np.frombuffer(base64.b64decode(packed["bits"]), dtype=np.uint8)
        return np.unpackbits(raw, count=packed["n"]).astype(np.bool_)
    size = 4 * packed["n"]
    kind, dtype = ("int32", "<i4") if "int32" in packed else ("float32", "<f4")
    numbers = zlib.decompressobj().decompress(base64.b64decode(packed[kind]), size)
    return np.frombuffer(numbers, dtype=dtype, count=packed["n"]).astype(np.float64)
