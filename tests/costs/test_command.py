"""``optkit cost``, ``cost:`` in a recipe, and the section of the page."""

import json
import re

import pytest
import yaml

import optkit
from optkit.core.errors import UserError
from optkit.costs.planned import PlannedCost
from optkit.costs.prices import read_prices
from optkit.costs.result import COST
from optkit.measure import Measure
from optkit.report.page import render_page
from tests.costs.runs import folder
from tests.costs.test_prices import PRICES
from tests.docs.blocks import ROOT
from tests.test_cli import RECIPE

ASKED = ["--traffic", "daily:rate=2/s,hours=3", "--prices", str(PRICES), "--p99", "60ms"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("runs") / "run-1")


@pytest.fixture
def invoke(command_here):
    return lambda *arguments: command_here("cost", *arguments)


def test_the_table_ends_with_the_cheapest_and_the_result_is_kept_for_the_page(run, invoke):
    done = invoke(run, *ASKED)
    assert done.exit_code == 0, done.exception
    assert "Cheapest without measurable loss" in done.output
    kept = json.loads((run / COST).read_text())
    assert {one["policy"] for one in kept["deployments"]} == {"fixed", "autoscaled", "serverless"}
    page = render_page([run])
    specs = json.loads(re.search(r'id="chart-data">(.*?)</script>', page, re.DOTALL)[1])
    assert {key for key in specs if key.startswith("serving")} == {"serving-0-0", "serving-0-1"}
    for part in (
        "Cost of serving",
        "Replicas against traffic",
        "From when it pays",
        "Dollars a million requests within 60 ms",
    ):
        assert part in page
    (run / COST).write_text("{}")
    with pytest.raises(UserError, match="cost.json: not what optkit cost writes .run optkit cost again"):
        render_page([run])
    (run / COST).unlink()


def test_json_and_markdown(run, invoke):
    found = json.loads(invoke(run, *ASKED, "--format", "json", "--policy", "fixed").output)
    assert found["p99_ms"] == 60
    assert [one["stage"] for one in found["deployments"]] == ["train", "prune", "recover", "quantize"]
    text = invoke(run, *ASKED, "--format", "md", "--policy", "fixed").output
    assert "| 3 quantize | eager | fixed | small |" in text


def test_without_a_run_the_traffic_is_described(invoke):
    done = invoke("--traffic", "poisson:rate=2/s,hours=1")
    assert re.match(
        r"7,\d{3} requests in 1 hours: 2\.\d* a second on average, [\d.]+ in the busiest minute", done.output
    )
    assert json.loads(invoke("--traffic", "poisson:rate=2/s,hours=1", "--format", "json").output)["seconds"] == 3600


def test_a_run_needs_prices_and_a_target(run, invoke):
    for option in ("--prices", "--p99"):
        place = ASKED.index(option)
        done = invoke(run, *ASKED[:place], *ASKED[place + 2 :])
        assert isinstance(done.exception, UserError)
        assert str(done.exception).startswith(f"{option}: missing")


def test_the_example_of_the_documentation_is_a_price_list():
    prices = read_prices(ROOT / "docs/examples/prices.yaml")
    assert [one.name for one in (*prices.instances, *prices.functions)] == ["2-cores", "8-cores", "functions"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "best of all"}, "policy: no policy 'best of all'"),
        ({"p99": "1"}, "p99: '1' has no unit"),
        ({"traffic": "poisson:rate=1"}, "traffic.rate: '1' has no unit"),
        ({"prices": "none.yaml"}, "cannot read none.yaml"),
    ],
)
def test_what_a_recipe_asks_is_checked_before_any_work(changes, message):
    with pytest.raises(UserError) as error:
        PlannedCost(**({"traffic": "poisson:rate=1/s,hours=1", "prices": str(PRICES), "p99": "1 s"} | changes))
    assert message in str(error.value)


def test_a_recipe_must_measure_what_its_costs_need():
    planned = PlannedCost("poisson:rate=1/s,hours=1", str(PRICES), "1 s")
    planned.check(Measure())
    with pytest.raises(UserError, match=r"measure.batch_sizes: cost needs batches of 1 .measure.batch_sizes=\[1, 8\]"):
        planned.check(Measure(batch_sizes=[8]))
    with pytest.raises(UserError, match="measure.memory: cost needs the memory of a replica"):
        planned.check(Measure(memory=False))


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe beside its price list and its traffic, and another current folder."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "prices.yaml").write_text(PRICES.read_text())
    (home / "log.csv").write_text("time\n" + "\n".join(str(n / 2) for n in range(400)))
    node = yaml.safe_load(RECIPE) | {"cost": {"traffic": "log.csv:repeat=2", "prices": "prices.yaml", "p99": "5 s"}}
    node["measure"] = {"batch_sizes": [1], "seconds": 0.05, "memory": True}
    (home / "priced.yaml").write_text(yaml.safe_dump(node, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    return str(home / "priced.yaml")


@pytest.mark.slow
def test_a_recipe_ends_with_its_costs(recipe):
    for overrides, message in (
        (["cost.polcy=fixed"], "cost.polcy: unknown key.*did you mean 'policy'"),
        (["cost=5"], "cost: 5 is not a mapping"),
        (["measure.memory=false"], "measure.memory: cost needs the memory"),
    ):
        with pytest.raises(UserError, match=message):
            optkit.run(recipe, *(f"+{one}" if "polcy" in one else one for one in overrides))
    run = optkit.run(recipe, "~engines.inductor", "chain=[train]")
    kept = json.loads((run.folder / COST).read_text())
    assert {one["engine"] for one in kept["deployments"]} == {"eager"}
    assert kept["traffic"]["requests"] == 800
    assert "Cheapest" in (run.folder / "cost.md").read_text() or "No deployment" in (run.folder / "cost.md").read_text()
    (row,) = run.rows
    assert 0.5 < row["load_s"] < 120


@pytest.mark.parametrize("option", [("--prices", "p.yaml"), ("--p99", "50ms"), ("--policy", "fixed")])
def test_what_needs_a_run_is_refused_without_one(command_here, option):
    done = command_here("cost", "--traffic", "poisson:rate=1/s", *option)
    assert str(done.exception).startswith(f"{option[0]}: needs a run")
