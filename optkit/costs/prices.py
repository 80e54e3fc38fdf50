"""Price lists: YAML files of the user's, in which each amount carries its unit.

The keys are ``date``; ``making`` (dollars an hour of the machine that ran the stages); ``instances`` and
``serverless``, each by name; ``transfer`` (``in`` and ``out``). docs/cost.md explains them, and
docs/examples/prices.yaml is an example.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optkit.core.checks import check_count, check_positive
from optkit.core.errors import UserError, did_you_mean
from optkit.costs.units import (
    DOLLARS_A_GB,
    DOLLARS_A_GB_SECOND,
    DOLLARS_A_REQUEST,
    DOLLARS_AN_HOUR,
    GIGABYTES,
    SECONDS,
    Units,
    quantity,
)


@dataclass(frozen=True)
class Instance:
    """A machine that is paid by time.

    Attributes:
        cores: of it.
        memory_gb: of it.
        price: dollars an hour.
        spot: dollars an hour while nobody outbids; None where there is no such offer.
        speed: of a core, over a core of the machine that was measured; None where `run` was measured on this kind.
        run: a run that was measured on this kind of machine: its service times count.
        start_s: from the order to the start of the process.
    """

    name: str
    cores: int
    memory_gb: float
    price: float
    spot: float | None = None
    speed: float | None = None
    run: Path | None = None
    start_s: float = 0.0

    def replicas(self, threads: int, memory_gb: float) -> int:
        """How many replicas of so many threads and so much memory it holds."""
        return min(self.cores // threads, int(self.memory_gb // memory_gb) if memory_gb else self.cores)


@dataclass(frozen=True)
class Function:
    """A serverless offer: instances come with requests, and are paid while they serve.

    Attributes:
        price: dollars a GB-second.
        request: dollars a request.
        memory_gb: the most that an instance can have.
        memory_per_core_gb: an instance gets a core for every so much memory.
        speed, run, start_s: as of an `Instance`.
        keep_warm_s: how long an idle instance stays.
        concurrency: how many requests an instance holds at once; it serves one after another.
        step_s: billed times are rounded up to a multiple of it; 0 for none.
    """

    name: str
    price: float
    request: float
    memory_gb: float
    memory_per_core_gb: float
    keep_warm_s: float
    speed: float | None = None
    run: Path | None = None
    start_s: float = 0.0
    concurrency: int = 1
    step_s: float = 0.0

    def size(self, threads: int, memory_gb: float) -> float | None:
        """GB of an instance with so many cores and at least so much memory; None where that is too large."""
        wanted = max(threads * self.memory_per_core_gb, memory_gb)
        return wanted if wanted <= self.memory_gb else None


@dataclass(frozen=True)
class Prices:
    """A price list.

    Attributes:
        date: of the prices.
        instances, functions: what can be rented.
        bytes_in, bytes_out: dollars a GB of requests and of answers.
        making: dollars an hour of the machine that ran the stages; None where it is not known.
    """

    date: str
    instances: list[Instance] = field(default_factory=list)
    functions: list[Function] = field(default_factory=list)
    bytes_in: float = 0.0
    bytes_out: float = 0.0
    making: float | None = None


TOP = ("date", "making", "instances", "serverless", "transfer")
OF_INSTANCE = ("cores", "memory", "price", "spot", "speed", "run", "start")
OF_FUNCTION = (
    "price", "requests", "memory", "memory_per_core", "keep_warm", "concurrency", "rounded_up_to",
    "speed", "run", "start",
)  # fmt: skip


def read_prices(path: str | Path) -> Prices:
    """Reads a price list; a relative ``run`` in it is relative to its folder.

    Raises:
        UserError: no such file, no YAML, or a key that is unknown, missing, or without its unit.
    """
    import yaml

    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", key="prices", value=str(path)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = f" in line {mark.line + 1}" if (mark := getattr(error, "problem_mark", None)) else ""
        raise UserError(f"not YAML{where}", key=str(path), fix="see docs/cost.md for an example") from error
    found = _Part(data, str(path), path.parent)
    found.check(TOP, "date")
    transfer = found.part("transfer")
    transfer.check(("in", "out"))
    prices = Prices(
        date=str(found.data["date"]),
        instances=[_instance(name, part) for name, part in found.parts("instances")],
        functions=[_function(name, part) for name, part in found.parts("serverless")],
        bytes_in=transfer.amount("in", DOLLARS_A_GB, 0.0),
        bytes_out=transfer.amount("out", DOLLARS_A_GB, 0.0),
        making=found.optional("making", DOLLARS_AN_HOUR),
    )
    if not prices.instances and not prices.functions:
        raise UserError("no instance and nothing serverless", key=str(path), fix="add one under instances")
    return prices


def _instance(name: str, part: _Part) -> Instance:
    part.check(OF_INSTANCE, "cores", "memory", "price")
    return Instance(
        name=name,
        cores=part.count("cores"),
        memory_gb=part.amount("memory", GIGABYTES),
        price=part.amount("price", DOLLARS_AN_HOUR),
        spot=part.optional("spot", DOLLARS_AN_HOUR),
        start_s=part.amount("start", SECONDS, 0.0),
        **part.speed(),
    )


def _function(name: str, part: _Part) -> Function:
    part.check(OF_FUNCTION, "price", "requests", "memory", "memory_per_core", "keep_warm")
    return Function(
        name=name,
        price=part.amount("price", DOLLARS_A_GB_SECOND),
        request=part.amount("requests", DOLLARS_A_REQUEST),
        memory_gb=part.amount("memory", GIGABYTES),
        memory_per_core_gb=part.amount("memory_per_core", GIGABYTES),
        keep_warm_s=part.amount("keep_warm", SECONDS),
        concurrency=part.count("concurrency", 1),
        step_s=part.amount("rounded_up_to", SECONDS, 0.0),
        start_s=part.amount("start", SECONDS, 0.0),
        **part.speed(),
    )


@dataclass(frozen=True)
class _Part:
    """A mapping of a price list, and where it stands."""

    data: Any
    where: str
    folder: Path

    def check(self, known: tuple[str, ...], *needed: str) -> None:
        """Raises UserError for what is no mapping, and for keys that are unknown or missing."""
        if not isinstance(self.data, Mapping):
            raise UserError(f"{self.data!r} is not a mapping", key=self.where, fix=f"keys are {', '.join(known)}")
        for key in self.data:
            if key not in known:
                raise UserError("unknown key", key=self._key(key), fix=did_you_mean(str(key), known))
        for key in needed:
            if self.data.get(key) is None:
                raise UserError("missing", key=self._key(key), fix=f"set {key}")

    def part(self, key: str) -> _Part:
        return _Part(self.data.get(key) or {}, self._key(key), self.folder)

    def parts(self, key: str) -> list[tuple[str, _Part]]:
        """The named mappings within a mapping."""
        within = self.part(key)
        if not isinstance(within.data, Mapping):
            raise UserError(f"{within.data!r} is not a mapping of names", key=within.where)
        return [(str(name), within.part(name)) for name in within.data]

    def amount(self, key: str, units: Units, default: float | None = None) -> float:
        if default is not None and self.data.get(key) is None:
            return default
        return quantity(self.data[key], units, self._key(key))

    def optional(self, key: str, units: Units) -> float | None:
        return None if self.data.get(key) is None else self.amount(key, units)

    def count(self, key: str, default: int | None = None) -> int:
        value = self.data.get(key, default)
        check_count(self._key(key), value)
        assert isinstance(value, int)
        return value

    def speed(self) -> dict[str, Any]:
        """How speed carries over to this machine: a factor, or a run that was measured on it."""
        speed, run = self.data.get("speed"), self.data.get("run")
        if (speed is None) == (run is None):
            fix = "speed: 1 for cores as fast as the measured ones, or run: a run that was measured on this kind"
            raise UserError("say how the measured speed carries over to it", key=self._key("speed"), fix=fix)
        if run is not None:
            return {"run": self.folder / str(run)}
        check_positive(self._key("speed"), speed)
        return {"speed": float(speed)}

    def _key(self, key: object) -> str:
        return f"{self.where}: {key}" if self.where.endswith((".yaml", ".yml")) else f"{self.where}.{key}"
