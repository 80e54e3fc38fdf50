"""A plan as files for what runs it: Kubernetes with its autoscaler or KEDA's, and Ray Serve."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from optkit.core.errors import UserError
from optkit.costs.policies import Autoscaled
from optkit.serving.plan import Plan

KUBERNETES, KEDA, RAY = "k8s", "keda", "ray"
IN_PROGRESS = "optkit_requests_in_progress"  # of /metrics
PORT = 8000
IMAGE = "registry.example.com/optkit:latest"
MODEL = "/model"
OVERHEAD_MB = 2500  # Ray and the web server, beside the replica: their resident memory
SHARED_MB = 256  # of /dev/shm, where Ray keeps what its processes exchange
PROMETHEUS = "http://prometheus.monitoring:9090"


def emit(plan: Plan, to: str, image: str = IMAGE) -> str:
    """The YAML that deploys a plan.

    Args:
        plan: the numbers.
        to: ``k8s`` (a Deployment, and a HorizontalPodAutoscaler), ``keda`` (a Deployment and a ScaledObject), or
            ``ray`` (a config for ``serve deploy``).
        image: of the containers.

    Raises:
        UserError: what it is for cannot express the plan.
    """
    import yaml

    made = {KUBERNETES: _kubernetes, KEDA: _keda, RAY: _ray}[to](plan, image)
    text = yaml.safe_dump_all(made, sort_keys=False, width=120)
    return "".join(f"# {line}\n" for line in _header(plan, to)) + text


def autoscaling(plan: Plan) -> dict[str, Any]:
    """The plan's autoscaler as Ray Serve's ``autoscaling_config``; a number of replicas is ``num_replicas``."""
    rule = plan.scaling
    if rule is None:
        return {"num_replicas": plan.replicas}
    config: dict[str, Any] = {
        "min_replicas": rule.min_replicas,
        "initial_replicas": max(1, rule.min_replicas),
        "max_replicas": rule.max_replicas,
        "target_ongoing_requests": rule.target,
        "look_back_period_s": rule.sync_s,
        "upscale_delay_s": rule.up_window_s,
        "downscale_delay_s": rule.down_window_s,
    }
    if rule.min_replicas == 0:
        config["downscale_to_zero_delay_s"] = rule.cooldown_s
    return {"autoscaling_config": config}


def service_name(plan: Plan) -> str:
    """A name that Kubernetes takes: lower case, at most 63 letters, digits and hyphens."""
    words = re.sub(r"[^a-z0-9]+", "-", f"optkit-{plan.recipe}-{plan.name}".lower())
    return words[:63].strip("-")


def _header(plan: Plan, to: str) -> list[str]:
    variant = f"{plan.run}/{plan.folder}"
    save = f"optkit serve {variant} --engine {plan.engine} --max-batch {plan.max_batch} --save DIR"
    lines = [f"{plan.name} of {plan.recipe} on {plan.engine}, as optkit cost chose it. Make the model's folder with:"]
    lines.append(f"  {save}")
    if to == RAY:
        return [*lines, "Set args.folder to it, on all machines, and start it: serve deploy FILE"]
    lines.append(
        f"and put it into the volume that is mounted at {MODEL}. Set image to one of docs/deploy/Dockerfile with"
    )
    lines.append(f"the extras serve and {plan.engine}. Prometheus must scrape the pods.")
    if to == KUBERNETES and plan.scaling is not None:
        lines.append(f"The autoscaler needs {IN_PROGRESS} from the custom metrics API (prometheus-adapter).")
    return lines


def _kubernetes(plan: Plan, image: str) -> list[dict[str, Any]]:
    rule = plan.scaling
    if rule is None:
        return [_deployment(plan, image, plan.replicas), _service(plan)]
    if rule.min_replicas == 0:
        fix = "--emit keda, or --policy fixed"
        raise UserError("it scales to zero, which Kubernetes' own autoscaler cannot", key="emit", value="k8s", fix=fix)
    metric = {"metric": {"name": IN_PROGRESS}, "target": {"type": "AverageValue", "averageValue": _quantity(rule)}}
    scaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": _named(plan),
        "spec": {
            "scaleTargetRef": _target(plan),
            "minReplicas": rule.min_replicas,
            "maxReplicas": rule.max_replicas,
            "metrics": [{"type": "Pods", "pods": metric}],
            "behavior": _behavior(rule),
        },
    }
    return [_deployment(plan, image, None), _service(plan), scaler]


def _keda(plan: Plan, image: str) -> list[dict[str, Any]]:
    rule = plan.scaling
    if rule is None:
        fix = "--emit k8s, or --policy autoscaled"
        raise UserError("it has a fixed number of replicas: there is nothing to scale", key="emit", value=KEDA, fix=fix)
    name = service_name(plan)
    triggers = [_trigger(f'sum({IN_PROGRESS}{{app="{name}"}})', f"{rule.target:g}", "0")]
    if rule.min_replicas == 0:
        # without a pod nothing counts requests but the gateway: it wakes the service, and never asks for more than one
        asked = f'sum(rate(nginx_ingress_controller_requests{{exported_service="{name}"}}[1m]))'
        triggers.append(_trigger(asked, "1000000000", "0"))
    scaled = {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": _named(plan),
        "spec": {
            "scaleTargetRef": _target(plan),
            "minReplicaCount": rule.min_replicas,
            "maxReplicaCount": rule.max_replicas,
            "pollingInterval": max(1, round(rule.poll_s)),
            "cooldownPeriod": round(rule.cooldown_s),
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior(rule)}},
            "triggers": triggers,
        },
    }
    return [_deployment(plan, image, None), _service(plan), scaled]


def _ray(plan: Plan, image: str) -> list[dict[str, Any]]:
    actor: dict[str, Any] = {"num_cpus": plan.threads}
    if plan.memory_gb is not None:
        actor["memory"] = math.ceil(1e9 * plan.memory_gb)
    model = {"name": "Model", "max_ongoing_requests": plan.max_ongoing, **autoscaling(plan), "ray_actor_options": actor}
    args = {"folder": MODEL, "engine": plan.engine, "max_batch": plan.max_batch, "max_wait_ms": plan.max_wait_ms}
    application = {
        "name": "optkit",
        "route_prefix": "/",
        "import_path": "optkit.serving.application:build",
        "args": args | {"threads": plan.threads},
        "deployments": [model],
    }
    return [{"http_options": {"host": "127.0.0.1", "port": PORT}, "applications": [application]}]


def _deployment(plan: Plan, image: str, replicas: int | None) -> dict[str, Any]:
    """A pod is one replica. An autoscaled Deployment has no number of its own, which applying it again would set."""
    name = service_name(plan)
    memory = OVERHEAD_MB + math.ceil(1e3 * (plan.memory_gb or 0))
    resources = {"cpu": str(plan.threads), "memory": f"{memory}M"}
    container = {
        "name": "optkit",
        "image": image,
        "args": _arguments(plan),
        "ports": [{"name": "http", "containerPort": PORT}],
        "resources": {"requests": resources, "limits": dict(resources)},
        "startupProbe": _probe(5, 60),
        "readinessProbe": _probe(5, 3),
        "livenessProbe": _probe(10, 6),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "model", "mountPath": MODEL, "readOnly": True},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
    }
    pod = {
        "terminationGracePeriodSeconds": 30,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000},
        "containers": [container],
        "volumes": [
            {"name": "model", "persistentVolumeClaim": {"claimName": name, "readOnly": True}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": f"{SHARED_MB}M"}},
        ],
    }
    scraped = {"prometheus.io/scrape": "true", "prometheus.io/port": str(PORT), "prometheus.io/path": "/metrics"}
    spec: dict[str, Any] = {} if replicas is None else {"replicas": replicas}
    spec |= {
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}, "annotations": scraped}, "spec": pod},
    }
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": _named(plan), "spec": spec}


def _probe(period_s: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": "/healthz", "port": "http"},
        "periodSeconds": period_s,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _arguments(plan: Plan) -> list[str]:
    numbers = {
        "--engine": plan.engine, "--max-batch": plan.max_batch, "--max-wait": f"{plan.max_wait_ms:g}ms",
        "--replicas": 1, "--threads": plan.threads, "--host": "0.0.0.0", "--port": PORT,
    }  # fmt: skip
    return ["serve", MODEL, *(str(word) for pair in numbers.items() for word in pair)]


def _service(plan: Plan) -> dict[str, Any]:
    name = service_name(plan)
    ports: Sequence[dict[str, Any]] = [{"name": "http", "port": 80, "targetPort": "http"}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _named(plan),
        "spec": {"selector": {"app": name}, "ports": ports},
    }


def _named(plan: Plan) -> dict[str, Any]:
    return {"name": service_name(plan), "labels": {"app": service_name(plan)}}


def _target(plan: Plan) -> dict[str, Any]:
    return {"apiVersion": "apps/v1", "kind": "Deployment", "name": service_name(plan)}


def _trigger(query: str, threshold: str, activation: str) -> dict[str, Any]:
    metadata = {"serverAddress": PROMETHEUS, "query": query, "threshold": threshold, "activationThreshold": activation}
    return {"type": "prometheus", "metricType": "AverageValue", "metadata": metadata}


def _behavior(rule: Autoscaled) -> dict[str, Any]:
    """What `optkit.costs.policies.Scaler` does: Kubernetes' defaults, written out."""
    every = round(rule.sync_s)
    up = [
        {"type": "Percent", "value": 100, "periodSeconds": every},
        {"type": "Pods", "value": 4, "periodSeconds": every},
    ]
    down = [{"type": "Percent", "value": 100, "periodSeconds": every}]
    return {
        "scaleUp": {"stabilizationWindowSeconds": round(rule.up_window_s), "selectPolicy": "Max", "policies": up},
        "scaleDown": {"stabilizationWindowSeconds": round(rule.down_window_s), "policies": down},
    }


def _quantity(rule: Autoscaled) -> str:
    """The target as Kubernetes writes quantities: in thousandths, rounded up."""
    thousandths = math.ceil(1e3 * rule.target - 1e-6)
    return str(thousandths // 1000) if thousandths % 1000 == 0 else f"{thousandths}m"
