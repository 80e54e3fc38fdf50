"""How a variant is served: the numbers that the cost model chose for one deployment."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from optkit.core.checks import check_count, is_number
from optkit.core.errors import UserError, did_you_mean
from optkit.costs.policies import AUTOSCALED, FIXED, SERVERLESS, Autoscaled
from optkit.costs.result import COST, FORMAT, Costs

CHOSEN = (
    "run", "recipe", "variant", "name", "folder", "engine", "max_batch", "max_wait_ms", "replicas", "scaling",
    "threads", "memory_gb",
)  # fmt: skip
MOST_BATCH = 4096
HELD = 1024


@dataclass(frozen=True)
class Plan:
    """How one variant is served on one engine.

    Attributes:
        run, recipe, variant, name, folder: of the variant, as in `optkit.costs.Deployment`.
        engine: that serves it.
        max_batch: the most requests in a batch.
        max_wait_ms: how long a request waits for others.
        replicas: how many there are, and the most where they are scaled.
        scaling: the autoscaler; None for a fixed number.
        threads: cores of a replica.
        memory_gb: of a replica; None where it is not known.
    """

    engine: str
    max_batch: int = 1
    max_wait_ms: float = 0.0
    replicas: int = 1
    scaling: Autoscaled | None = None
    threads: int = 1
    memory_gb: float | None = None
    run: str = ""
    recipe: str = ""
    variant: str = ""
    name: str = ""
    folder: str = ""

    def __post_init__(self) -> None:
        for key in ("max_batch", "replicas", "threads"):
            check_count(key, getattr(self, key))
        if self.max_batch > MOST_BATCH:
            raise UserError(f"{self.max_batch} is too many", key="max_batch", fix=f"at most {MOST_BATCH}")
        if not is_number(self.max_wait_ms) or not 0 <= self.max_wait_ms < 60_000:
            raise UserError(f"{self.max_wait_ms!r} is no time", key="max_wait_ms", fix="0 to 60000 ms")

    @classmethod
    def of(cls, deployment: Mapping[str, Any]) -> Plan:
        """Of a deployment, as `Costs.to_json` writes it.

        Raises:
            KeyError, TypeError: it is none.
        """
        chosen = {key: deployment[key] for key in CHOSEN}
        scaling = None if chosen["scaling"] is None else Autoscaled(**chosen["scaling"])
        return cls(**(chosen | {"scaling": scaling}))

    @property
    def least(self) -> int:
        """The fewest replicas."""
        return self.replicas if self.scaling is None else self.scaling.min_replicas

    @property
    def most(self) -> int:
        """The most replicas."""
        return self.replicas if self.scaling is None else self.scaling.max_replicas

    @property
    def max_ongoing(self) -> int:
        """Requests that a replica holds: a batch that runs, one that gathers meanwhile, and enough behind them.

        A request that finds all replicas full is offered again after 25 ms at first and 500 ms at last (Ray 2.60), for
        which the replicas would stand idle. What a replica holds is not given to one that starts later.
        """
        return max(2 * self.max_batch, HELD)

    def changed(self, **changes: Any) -> Plan:
        """The same with other numbers; None changes nothing, and a number of replicas ends the scaling."""
        given = {key: value for key, value in changes.items() if value is not None}
        return replace(self, **(given | ({"scaling": None} if "replicas" in given else {})))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def best_plan(costs: Costs, of: str | None = None) -> Plan:
    """The cheapest deployment of those that run replicas.

    Args:
        costs: what `optkit.cost` gave.
        of: a variant, such as ``3 quantize``, or with its engine, ``3 quantize on openvino``; None takes the cheapest
            that loses no measurable quality.

    Raises:
        UserError: no such deployment, or it is serverless.
    """
    if of is None:
        if costs.best is None:
            fix = f"name a variant: --of '{costs.deployments[0].name}'"
            raise UserError("no trusted deployment keeps the quality", key="emit", fix=fix)
        chosen = costs.best
        if chosen.policy == SERVERLESS:
            fix = f"--policy {FIXED} or --policy {AUTOSCALED}"
            raise UserError("the cheapest deployment is serverless, which has no replicas", key="emit", fix=fix)
        return Plan.of(asdict(chosen))
    running = [one for one in costs.deployments if one.policy != SERVERLESS]
    named = [one for one in running if of in (one.name, f"{one.name} on {one.engine}")]
    if not named:
        known = [f"{one.name} on {one.engine}" for one in running]
        raise UserError(f"no deployment of '{of}'", key="of", value=of, fix=did_you_mean(of, known))
    return Plan.of(asdict(min(named, key=lambda one: one.dollars_a_million)))


def planned(run: Path, variant: str, engine: str) -> Plan | None:
    """The cheapest deployment of a variant on an engine in a run's ``cost.json``; None where there is none.

    Args:
        run: its folder.
        variant: its id.
        engine: that serves it.

    Raises:
        UserError: the file is not what this optkit writes.
    """
    file = run / COST
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']}")
        same = [one for one in found["deployments"] if (one["variant"], one["engine"]) == (variant, engine)]
        return _cheapest(same)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError("not what optkit cost writes", key=str(file), fix="run optkit cost again") from error


def plan_beside(variant: Path, engine: str, overrides: Sequence[str] = ()) -> Plan | None:
    """`planned` of a variant's folder in its run, or of a run's last variant; None where it lies in no run.

    Args:
        variant: the folder.
        engine: that serves it.
        overrides: of the run's recipe.
    """
    from optkit.core.artifact import VARIANT, open_artifact
    from optkit.deploy.source import last_variant

    if (variant / COST).is_file() and (variant / "recipe.yaml").is_file():
        variant = last_variant(variant, overrides)
    run = variant.resolve().parent.parent
    if not (variant / VARIANT).is_file() or not (run / COST).is_file():
        return None
    return planned(run, open_artifact(variant).variant.id, engine)


def _cheapest(deployments: Iterable[Mapping[str, Any]]) -> Plan | None:
    running = (one for one in deployments if one["policy"] != SERVERLESS)
    best = min(running, key=lambda one: one["dollars_a_million"], default=None)
    return None if best is None else Plan.of(best)
