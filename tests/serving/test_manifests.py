"""``optkit cost --emit``: the files hold the numbers that the cost model chose."""

import json
import math
from dataclasses import asdict, replace

import pytest
import yaml

import optkit
from optkit.core.errors import UserError
from optkit.core.extras import missing
from optkit.costs.policies import Autoscaled
from optkit.costs.result import COST
from optkit.serving.manifests import OVERHEAD_MB, emit, service_name
from optkit.serving.plan import Plan, best_plan, planned
from tests.costs.runs import folder
from tests.costs.test_prices import PRICES

TRAFFIC = "poisson:rate=150/s,hours=0.01"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("runs") / "run-1")


@pytest.fixture(scope="module")
def costs(run):
    found = optkit.cost(run, TRAFFIC, PRICES, p99="60 ms", policy="fixed")
    found.save(run / COST)
    return found


@pytest.fixture(scope="module")
def scaled(costs):
    """The deployment of the last variant, with an autoscaler."""
    (found,) = [one for one in costs.deployments if one.stage == "quantize"]
    return replace(found, policy="autoscaled", scaling=Autoscaled(5.6, 2, 9, up_window_s=30), max_wait_ms=7.25)


def read(plan, to):
    text = emit(plan, to)
    assert "&id" not in text
    return {part.get("kind", "ray"): part for part in yaml.safe_load_all(text)}


def test_a_deployment_has_the_numbers_and_kubernetes_scales_it_by_them(scaled):
    plan = Plan.of(asdict(scaled))
    parts = read(plan, "k8s")
    assert list(parts) == ["Deployment", "Service", "HorizontalPodAutoscaler"]
    pod = parts["Deployment"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    given = dict(zip(container["args"][2::2], container["args"][3::2], strict=True))
    assert given["--max-batch"] == str(scaled.max_batch)
    assert given["--max-wait"] == "7.25ms"
    assert (given["--engine"], given["--replicas"]) == (scaled.engine, "1")
    for side in ("requests", "limits"):
        wanted = {"cpu": str(scaled.threads), "memory": f"{OVERHEAD_MB + math.ceil(1000 * scaled.memory_gb)}M"}
        assert container["resources"][side] == wanted
    assert "replicas" not in parts["Deployment"]["spec"]
    spec = parts["HorizontalPodAutoscaler"]["spec"]
    assert spec["scaleTargetRef"]["name"] == parts["Deployment"]["metadata"]["name"] == service_name(plan)
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 9)
    (metric,) = spec["metrics"]
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "5600m"}
    assert spec["behavior"]["scaleUp"]["stabilizationWindowSeconds"] == 30
    assert spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 300
    assert parts["Service"]["spec"]["selector"] == pod["metadata"]["labels"]


def test_a_fixed_number_is_in_the_deployment(costs):
    (fixed,) = [one for one in costs.deployments if (one.stage, one.policy) == ("train", "fixed")]
    plan = Plan.of(asdict(fixed))
    parts = read(plan, "k8s")
    assert list(parts) == ["Deployment", "Service"]
    assert parts["Deployment"]["spec"]["replicas"] == fixed.replicas > 1
    (model,) = read(plan, "ray")["ray"]["applications"][0]["deployments"]
    assert model["num_replicas"] == fixed.replicas
    with pytest.raises(UserError, match=r"emit: it has a fixed number of replicas.*--policy autoscaled"):
        emit(plan, "keda")


def test_keda_scales_to_zero_and_back_which_kubernetes_cannot(scaled):
    rule = Autoscaled(0.8, 0, 7, cooldown_s=120, poll_s=15)
    plan = replace(Plan.of(asdict(scaled)), scaling=rule)
    spec = read(plan, "keda")["ScaledObject"]["spec"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (0, 7)
    assert (spec["pollingInterval"], spec["cooldownPeriod"]) == (15, 120)
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] == 300
    of_pods, of_gateway = spec["triggers"]
    assert (of_pods["metadata"]["threshold"], of_pods["metricType"]) == ("0.8", "AverageValue")
    assert f'optkit_requests_in_progress{{app="{service_name(plan)}"}}' in of_pods["metadata"]["query"]
    assert of_gateway["metadata"]["activationThreshold"] == "0"
    with pytest.raises(UserError, match=r"emit: it scales to zero.*--emit keda"):
        emit(plan, "k8s")
    kept = replace(plan, scaling=replace(rule, min_replicas=1))
    assert len(read(kept, "keda")["ScaledObject"]["spec"]["triggers"]) == 1


def test_ray_serve_gets_the_autoscaler(scaled):
    plan = Plan.of(asdict(scaled))
    config = read(plan, "ray")["ray"]
    (application,) = config["applications"]
    (model,) = application["deployments"]
    rule = scaled.scaling
    assert application["args"] == {
        "folder": "/model",
        "engine": scaled.engine,
        "max_batch": scaled.max_batch,
        "max_wait_ms": scaled.max_wait_ms,
        "threads": scaled.threads,
    }
    auto = model["autoscaling_config"]
    assert auto["target_ongoing_requests"] == rule.target
    assert (auto["min_replicas"], auto["max_replicas"]) == (rule.min_replicas, rule.max_replicas)
    assert (auto["upscale_delay_s"], auto["downscale_delay_s"]) == (rule.up_window_s, rule.down_window_s)
    assert auto["look_back_period_s"] == rule.sync_s
    assert model["ray_actor_options"] == {"num_cpus": scaled.threads, "memory": math.ceil(1e9 * scaled.memory_gb)}
    assert model["max_ongoing_requests"] == plan.max_ongoing == 1024
    assert config["http_options"]["host"] == "127.0.0.1"


@pytest.mark.skipif(missing("serve") is not None, reason="needs the extra serve")
@pytest.mark.parametrize("scaling", [None, Autoscaled(3.5, 1, 4), Autoscaled(3.5, 0, 4)])
def test_ray_takes_the_config(scaled, scaling):
    from ray.serve import schema
    from ray.serve.config import AutoscalingConfig

    config = read(replace(Plan.of(asdict(scaled)), scaling=scaling), "ray")["ray"]
    (model,) = schema.ServeDeploySchema.model_validate(config).applications[0].deployments
    if scaling is None:
        assert model.num_replicas == scaled.replicas
    else:
        auto = AutoscalingConfig(**model.autoscaling_config)
        assert (auto.min_replicas, auto.max_replicas, auto.target_ongoing_requests) == (scaling.min_replicas, 4, 3.5)
        assert (auto.upscale_delay_s, auto.downscale_delay_s, auto.look_back_period_s) == (0, 300, 15)


def test_the_best_or_the_named_one_is_emitted(costs, run):
    assert best_plan(costs) == Plan.of(asdict(costs.best))
    named = best_plan(costs, "1 prune on eager")
    running = [one for one in costs.deployments if one.stage == "prune" and one.policy != "serverless"]
    assert named == Plan.of(asdict(min(running, key=lambda one: one.dollars_a_million)))
    assert (named.folder, named.run) == ("variants/1-prune", running[0].run)
    assert planned(run, named.variant, "eager") == named
    assert planned(run, named.variant, "openvino") is None
    assert planned(run.parent, named.variant, "eager") is None
    with pytest.raises(UserError, match="of: no deployment of '9 prune'.*1 prune on eager"):
        best_plan(costs, "9 prune")
    for choices in ([], [replace(costs.choices[0], deployment=None)]):
        with pytest.raises(UserError, match="emit: no trusted deployment keeps the quality .name a variant"):
            best_plan(replace(costs, choices=choices))
    serverless = replace(costs, deployments=[replace(one, policy="serverless") for one in costs.deployments])
    with pytest.raises(UserError, match="serverless, which has no replicas .--policy fixed or --policy autoscaled"):
        best_plan(serverless)


def test_a_damaged_file_of_costs_is_one_line(run, tmp_path):
    for text in ("[", '{"format": 9}', '{"format": 1, "deployments": [{}]}'):
        (tmp_path / COST).write_text(text)
        with pytest.raises(UserError, match="cost.json: not what optkit cost writes .run optkit cost again"):
            planned(tmp_path, "v1", "eager")


def test_names_are_those_that_kubernetes_takes():
    assert service_name(Plan("eager", recipe="My Recipe_2", name="3 quantize")) == "optkit-my-recipe-2-3-quantize"
    assert len(service_name(Plan("eager", recipe="x" * 80))) == 63


def test_the_command_prints_the_files_alone(run, command_here):
    asked = [run, "--traffic", TRAFFIC, "--prices", PRICES, "--p99", "60ms", "--policy", "fixed"]
    done = command_here("cost", *asked, "--emit", "k8s", "--of", "3 quantize")
    assert done.exit_code == 0, done.exception
    kept = json.loads((run / COST).read_text())["deployments"]
    (parts,) = [part for part in yaml.safe_load_all(done.stdout) if part["kind"] == "Deployment"]
    assert parts["spec"]["replicas"] == next(one["replicas"] for one in kept if one["stage"] == "quantize")
    alone = command_here("cost", "--traffic", TRAFFIC, "--emit", "k8s")
    assert str(alone.exception) == "--emit: needs a run (name a RUN)"
    idle = command_here("cost", *asked, "--of", "3 quantize")
    assert str(idle.exception).startswith("--of: is only for --emit")
