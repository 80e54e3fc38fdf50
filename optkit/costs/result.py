"""What `cost` gives: deployments with their dollars, and what pays."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.core.cache import write_text
from optkit.costs.policies import Autoscaled
from optkit.costs.traffic import Description

if TYPE_CHECKING:
    import pandas

FORMAT = 1
COST = "cost.json"


@dataclass(frozen=True)
class Deployment:
    """One variant on one engine under one policy, at its optimum.

    Attributes:
        run, recipe, variant, step, stage, technique, chain, control: of the variant's record.
        name: of the variant in its run.
        folder: of the variant in its run's folder.
        engine: that serves it.
        policy: ``fixed``, ``autoscaled`` or ``serverless``.
        offer: the instance or function of the price list.
        max_batch: the most requests in a batch.
        max_wait_ms: how long a request waits for others.
        replicas: the most at once.
        mean_replicas: on average.
        scaling: the autoscaler, where there is one.
        utilization: the share of replica-seconds that is service; None for serverless.
        p50_ms, p95_ms, p99_ms: of waiting and service, cold starts included.
        requests: in all.
        late: requests answered after the target.
        lost: requests that left unanswered.
        dollars_a_day, dollars_a_million: the bill by time, and by requests.
        dollars_a_day_ci, dollars_a_million_ci: with service times at the ends of their medians' 95% intervals; None
            where these are not known.
        spot_dollars_a_day: on spot machines; interruptions are not simulated.
        kwh_a_million: while serving; None where it was not measured.
        memory_gb: of a replica.
        threads: of a replica: the cores that it was measured with.
        making_s: wall seconds of the stages that made the variant from the baseline.
        caveat: why its timing cannot be trusted.
        timeline: ``[hour, requests a second, replicas]``.
    """

    run: str
    recipe: str
    variant: str
    name: str
    folder: str
    step: int
    stage: str
    technique: str
    chain: list[str]
    control: str | None
    engine: str
    policy: str
    offer: str
    max_batch: int
    max_wait_ms: float
    replicas: int
    mean_replicas: float
    scaling: Autoscaled | None
    utilization: float | None
    p50_ms: float
    p95_ms: float
    p99_ms: float
    requests: int
    late: int
    lost: int
    dollars_a_day: float
    dollars_a_million: float
    dollars_a_day_ci: list[float] | None
    dollars_a_million_ci: list[float] | None
    spot_dollars_a_day: float | None
    kwh_a_million: float | None
    memory_gb: float
    threads: int
    making_s: float
    caveat: str | None
    timeline: list[list[float]] = field(repr=False)


@dataclass(frozen=True)
class Payback:
    """From when on a variant has paid for its making, against the baseline under the same policy.

    Attributes:
        run, name, policy: which deployment; both it and the baseline's are the cheapest of their variant.
        engine: that serves it.
        control: the control that it belongs to.
        making_dollars: what its stages took, at the price of the machine that ran them.
        saved_a_million: dollars saved for a million requests.
        requests: until the saving is as large as the making; None for never.
        requests_ci: with the savings at the ends of both intervals; an end is None for never.
        days: the same at this traffic.
    """

    run: str
    name: str
    policy: str
    engine: str
    control: str | None
    making_dollars: float
    saved_a_million: float
    requests: float | None
    requests_ci: list[float | None] | None
    days: float | None


@dataclass(frozen=True)
class Share:
    """What a technique contributes to the dollars of the whole chain.

    Attributes:
        run: whose chains.
        technique: the stage's name.
        policy: under which.
        dollars_a_million: its Shapley value; below 0 it saves.
        orders: how many orders of joining it is averaged over.
    """

    run: str
    technique: str
    policy: str
    dollars_a_million: float
    orders: int


@dataclass(frozen=True)
class Choice:
    """The cheapest deployment whose loss of quality can be borne.

    Attributes:
        tolerance: the loss that is surely (95%) not exceeded, in words; None: no loss that the test can tell from none.
        deployment: its place in `Costs.deployments`; None where nothing keeps it.
    """

    tolerance: str | None
    deployment: int | None


@dataclass(frozen=True, repr=False)
class Costs:
    """What it costs to serve the variants of runs. It prints as tables.

    Attributes:
        traffic: the requests.
        traffic_name: what they come from.
        prices: date of the price list.
        p99_ms: the latency target.
        deployments: for each variant, engine and policy the cheapest that meets the target.
        unmet: what does not meet it, and why, in words.
        hints: what would make the figures better, in words.
        paybacks: from when on variants pay.
        shares: what each technique contributes.
        choices: the cheapest for each loss that can be borne.
    """

    traffic: Description
    traffic_name: str
    prices: str
    p99_ms: float
    deployments: list[Deployment]
    unmet: list[str]
    hints: list[str]
    paybacks: list[Payback]
    shares: list[Share]
    choices: list[Choice]

    @property
    def best(self) -> Deployment | None:
        """The cheapest that loses no measurable quality."""
        place = self.choices[0].deployment if self.choices else None
        return None if place is None else self.deployments[place]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"format": FORMAT, **asdict(self), "traffic_lines": self.traffic.lines()}

    def to_frame(self) -> pandas.DataFrame:
        """The deployments as a data frame, without their timelines."""
        import pandas

        return pandas.DataFrame([asdict(one) for one in self.deployments]).drop(columns="timeline")

    def save(self, path: Path) -> None:
        """Writes the JSON."""
        write_text(path, json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")

    def __repr__(self) -> str:
        from optkit.costs.tables import text

        return text(self)
