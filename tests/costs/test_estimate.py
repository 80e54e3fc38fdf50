"""The whole: from a ledger, traffic and prices to dollars, and what pays."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

import optkit
from optkit.core.errors import UserError
from optkit.core.records import Measurement
from optkit.costs.payback import paybacks
from optkit.costs.policies import POLICIES
from optkit.costs.prices import read_prices
from optkit.costs.result import COST
from optkit.costs.specs import parse_traffic
from optkit.costs.tables import markdown
from tests.costs.runs import chain, folder
from tests.costs.test_prices import PRICES
from tests.costs.test_replicas import of_tokens
from tests.report.runs import busy, write_run

TRAFFIC = "daily:rate=6/s,hours=2"  # the quiet hours after midnight, about 2 a second


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("runs") / "run-1", energy={1: 1.0, 8: 2.0})


@pytest.fixture(scope="module")
def costs(run):
    return optkit.cost(run, TRAFFIC, PRICES, p99="60 ms")


def of(costs, stage, policy):
    (found,) = [one for one in costs.deployments if (one.stage, one.policy) == (stage, policy)]
    return found


def test_every_variant_has_its_cheapest_deployment_under_every_policy(costs):
    assert [(one.stage, one.policy) for one in costs.deployments] == [
        (stage, policy) for stage in ("train", "prune", "recover", "quantize") for policy in POLICIES
    ]
    for one in costs.deployments:
        assert one.p99_ms <= 60
        assert one.requests == costs.traffic.requests == len(parse_traffic(TRAFFIC))
        assert (one.lost, one.memory_gb) == (0, 1.0)
        assert one.late <= 0.01 * one.requests
        low, high = one.dollars_a_million_ci
        assert low <= one.dollars_a_million <= high
        assert one.dollars_a_million == pytest.approx(one.dollars_a_day / 86_400 * 7200 / one.requests * 1e6)
        assert len(one.timeline) == 288
        assert np.mean([rate for _, rate, _ in one.timeline]) == pytest.approx(costs.traffic.mean, rel=1e-3)


def test_fixed_replicas_cost_their_hours(costs):
    quantized = of(costs, "quantize", "fixed")
    # at most 5 ms for each of 2 a second: one replica is enough, on the smaller machine
    assert (quantized.replicas, quantized.mean_replicas, quantized.offer) == (1, 1, "small")
    moved = costs.traffic.requests * (1000 * 0.01 + 10 * 0.09) / 1e9
    assert quantized.dollars_a_day == pytest.approx(24 * 0.10 + 12 * moved)
    assert quantized.spot_dollars_a_day == pytest.approx(24 * 0.04 + 12 * moved)
    assert quantized.utilization * 7200 == pytest.approx(costs.traffic.requests * 0.005, rel=0.1)


def test_serverless_costs_its_seconds(costs):
    one = of(costs, "train", "serverless")
    # half of the 10 ms are rounded up to 11, of 2 cores' memory; each instance starts in 2 s; and requests; and bytes
    paid_s = 0.0105 * one.requests + 2 * one.replicas
    least = 2 * 1.769 * paid_s * 16.6667 / one.requests + 0.2 + (1000 * 0.01 + 10 * 0.09) / 1e3
    assert 0.99 * least < one.dollars_a_million < 1.15 * least  # some instances go, and others start
    assert one.utilization is None
    assert one.kwh_a_million == pytest.approx(1.0 / 3.6)


def test_a_machine_without_a_price_breaks_even_by_what_it_saves(costs):
    base = of(costs, "train", "fixed")
    free = replace(of(costs, "recover", "fixed"), dollars_a_day=0.0, dollars_a_million=0.0, caveat=None)
    (found,) = paybacks([base, free], 0.36, 7200.0)
    assert found.requests == pytest.approx(found.making_dollars / base.dollars_a_million * 1e6)
    assert found.days == pytest.approx(found.requests / (12 * (free.requests - free.lost)))


def test_energy_adds_up(costs, run):
    one = of(costs, "train", "fixed")
    if one.max_batch == 1:
        assert one.kwh_a_million == pytest.approx(1e6 * 1.0 / 3.6e6)
    else:
        assert 1e6 * 2.0 / 8 / 3.6e6 < one.kwh_a_million <= 1e6 * 1.0 / 3.6e6


def test_paybacks_are_the_making_over_the_saving(costs):
    paid = {(one.name, one.policy): one for one in costs.paybacks}
    assert len(paid) == 9
    one = paid["2 recover", "serverless"]
    base, own = of(costs, "train", "serverless"), of(costs, "recover", "serverless")
    # stages of 100 and 200 s at 0.36 dollars an hour
    assert one.making_dollars == pytest.approx(0.03)
    assert one.saved_a_million == pytest.approx(base.dollars_a_million - own.dollars_a_million)
    assert one.requests == pytest.approx(0.03 / one.saved_a_million * 1e6)
    assert one.days == pytest.approx(one.requests / (12 * costs.traffic.requests))
    assert one.requests_ci[0] < one.requests < one.requests_ci[1]
    # one replica serves the baseline and what is made from it: nothing is saved
    fixed = paid["3 quantize", "fixed"]
    assert (fixed.requests, fixed.days) == (None, None)


def test_shares_of_techniques_add_up_to_the_whole(costs):
    for policy in POLICIES:
        own = {one.technique: one for one in costs.shares if one.policy == policy}
        assert list(own) == ["prune", "recover", "quantize"]
        whole = of(costs, "quantize", policy).dollars_a_million - of(costs, "train", policy).dollars_a_million
        assert sum(one.dollars_a_million for one in own.values()) == pytest.approx(whole)
        assert {one.orders for one in own.values()} == {1}


def test_the_choice_keeps_quality_and_larger_losses_only_make_it_cheaper(costs):
    best = costs.best
    assert best.stage != "prune"
    keeping = [one for one in costs.deployments if one.stage != "prune"]
    assert best.dollars_a_million_ci[1] == min(one.dollars_a_million_ci[1] for one in keeping)
    assert costs.choices[0].tolerance is None
    assert [one.tolerance for one in costs.choices[1:]] == ["0.5 points", "1 points", "2 points", "5 points"]


def test_the_result_prints_is_json_and_a_frame(costs, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text, page = repr(costs), markdown(costs)
    for part in (
        "Cheapest without measurable loss",
        "3 quantize",
        "serverless",
        "2026-11-01",
        "never",
        "requests to break even",
    ):
        assert part in text
        assert part in page
    costs.save(tmp_path / COST)
    data = json.loads((tmp_path / COST).read_text())
    assert data["format"] == 1
    assert data["deployments"][0]["dollars_a_day"] == costs.deployments[0].dollars_a_day
    assert len(costs.to_frame()) == len(costs.deployments)


def test_one_policy_alone(run):
    found = optkit.cost(
        str(run), parse_traffic("poisson:rate=20/s,hours=0.05"), read_prices(PRICES), "60ms", policy="fixed"
    )
    assert {one.policy for one in found.deployments} == {"fixed"}


def test_a_target_that_nothing_meets_names_the_best(run):
    with pytest.raises(UserError) as error:
        optkit.cost(run, "poisson:rate=1/s,hours=0.1", slow_prices(), "3 ms")
    message = (
        r"p99: no number of replicas meets it: the fastest, 3 quantize on eager, takes 5.0\d ms without any waiting"
    )
    assert re.match(message + r" \(at least 6 ms\)$", str(error.value))
    found = optkit.cost(run, "poisson:rate=1/s,hours=0.1", slow_prices(), "7 ms", policy="fixed")
    assert {one.stage for one in found.deployments} == {"quantize"}
    assert [line.split(",")[0] for line in found.unmet] == [
        "0 train on eager",
        "1 prune on eager",
        "2 recover on eager",
    ]


def slow_prices():
    """The small instance alone."""
    prices = read_prices(PRICES)
    return replace(prices, instances=prices.instances[:1], functions=[])


def test_a_run_measured_on_an_instance_gives_its_speed(run, tmp_path):
    def slower(measurement):
        if measurement.name != "latency":
            return measurement
        return replace(measurement, raw=(3 * np.array(measurement.raw)).tolist())

    there = write_run(tmp_path / "there", [replace(r, measurements=[*map(slower, r.measurements)]) for r in chain()])
    measured = replace(slow_prices().instances[0], speed=None, run=there)
    prices = replace(slow_prices(), instances=[measured])
    found = optkit.cost(run, "poisson:rate=1/s,hours=0.5", prices, "60 ms", policy="fixed")
    assert of(found, "train", "fixed").p50_ms == pytest.approx(30, rel=0.02)
    # a run of that machine that lacks the variant
    other = replace(prices, instances=[replace(measured, run=write_run(tmp_path / "other", chain()[:1]))])
    last = write_run(tmp_path / "last", [replace(chain()[-1], step=0)])
    with pytest.raises(UserError, match="did not measure it"):
        optkit.cost(last, "poisson:rate=1/s,hours=0.1", other, "1 s", "fixed")


def test_a_variant_that_no_machine_holds_is_named(tmp_path):
    large = folder(tmp_path / "large", memory=30_000.0)
    with pytest.raises(UserError, match=r"0 train on eager, small: it needs 2 cores and 30.00 GB"):
        optkit.cost(large, "poisson:rate=1/s,hours=0.1", slow_prices(), "60 ms")


def test_a_timing_that_cannot_be_trusted_is_marked_and_not_concluded_from(tmp_path):
    doubtful = write_run(tmp_path / "busy", busy(chain()))
    found = optkit.cost(doubtful, "poisson:rate=5/s,hours=0.2", PRICES, "60 ms", policy="serverless")
    quantized = of(found, "quantize", "serverless")
    assert quantized.caveat == "other work kept 1.3 cores busy"
    assert quantized.dollars_a_million_ci is None
    assert found.best.stage == "recover"
    assert all(one.name != "3 quantize" for one in found.paybacks)
    assert "3 quantize†" in repr(found)
    assert "cannot be trusted" in repr(found)


def test_language_models_are_served_by_their_tokens(tmp_path):
    record = of_tokens()
    memory = {"engine": "eager", "batch_size": 2, "threads": 2}
    record = replace(record, measurements=[*record.measurements, Measurement("load", 4.0, "s", conditions=memory)])
    run = write_run(tmp_path / "lm", [record])
    spec = "poisson:rate=1/s,hours=1,prompt_tokens=50,output_tokens=11"
    found = optkit.cost(run, spec, PRICES, "5 s")
    # 50 ms of prefill and ten times 15 ms
    assert of(found, "model", "serverless").p50_ms == pytest.approx(200)
    assert of(found, "model", "fixed").utilization == pytest.approx(0.2, rel=0.1)
    with pytest.raises(UserError, match="needs the tokens of each request"):
        optkit.cost(run, "poisson:rate=1/s", PRICES, "5 s")
    with pytest.raises(UserError, match=r"measure.prompt_lengths=\[10,100,200,400\]"):
        optkit.cost(run, "poisson:rate=1/s,hours=1,prompt_tokens=300,output_tokens=1", PRICES, "5 s")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "spot"}, "policy: no policy 'spot'"),
        ({"p99": "50"}, "p99: '50' has no unit"),
        ({"prices": "none.yaml"}, "prices: cannot read none.yaml"),
        ({"traffic": "poisson"}, "traffic.rate: no rate"),
        ({"runs": "NOTHERE"}, "no ledger at NOTHERE"),
        ({"prices": slow_prices(), "policy": "serverless"}, "policy: the price list has no serverless"),
    ],
)
def test_mistakes_are_one_line(changes, message, run):
    with pytest.raises(UserError) as error:
        optkit.cost(
            **({"runs": run, "traffic": "poisson:rate=1/s,hours=1", "prices": PRICES, "p99": "50 ms"} | changes)
        )
    assert message in str(error.value)


def test_batch_sizes_around_the_optimum_are_asked_for(run):
    found = optkit.cost(run, "poisson:rate=380/s,hours=0.01", slow_prices(), "150 ms", policy="fixed")
    assert of(found, "quantize", "fixed").max_batch == 8
    (hint,) = found.hints
    assert hint.startswith("The best batch may lie between those measured. Measure 3, too: optkit measure ")
    assert hint.endswith("'measure.batch_sizes=[1,3,8]'")
