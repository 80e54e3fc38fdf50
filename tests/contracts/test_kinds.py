"""Every stage on every kind of output: it works and what it makes reloads, or it is refused by one line."""

import copy
import json
import math

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from optkit.core.artifact import save_artifact
from optkit.core.errors import UserError
from optkit.core.instantiate import build
from optkit.core.stage import ChecksModel, Context
from optkit.core.structure import flatten
from optkit.core.surgeries import surgery_name
from optkit.core.task import LABELS, SealedTask
from optkit.core.variant import Variant
from optkit.launch.loading import layers_start_over
from optkit.measure.validation import Validation
from optkit.models import ModelSpec
from optkit.recipe.compose import shipped, stage_catalogue
from optkit.recipe.keys import within
from tests.contracts.kinds import KINDS, OUTPUTS, KindTask

# what looks at data in another way than a stage's defaults
VARIATIONS = {
    "prune/structured, taylor": ["criterion=taylor", "batches=2"],
    "prune/structured, fisher": ["criterion=fisher", "batches=2"],
    "prune/structured, activation": ["criterion=activation", "batches=2"],
    "prune/structured, sensitivity": ["scope=sensitivity", "sensitivity_examples=16"],
    "quantize/static, max_drop": ["max_drop=0.05", "sensitivity_examples=16"],
    "quantize/weight_only, gptq": ["rounding=gptq", "batches=2"],
}
STAGES = (*stage_catalogue(), *VARIATIONS)
# tuples and lists of outputs are taken apart as dicts and dataclasses are: three stages show it
ALSO_SEQUENCES = ("train", "prune/structured", "quantize/static")
SLOW = ("qat", "gradual", "iterative", "pattern", "max_drop", "sensitivity", "fisher", "activation", "gptq")


def _stage(name, *changes):
    path = name.partition(", ")[0]
    overrides = [*VARIATIONS.get(name, ()), *changes]
    with layers_start_over(), initialize_config_dir(str(shipped("conf")), version_base="1.3"):
        chosen = [f"+stage@it={path}", *(x if x.startswith("~") else f"it.{x}" for x in overrides)]
        node = OmegaConf.to_container(compose(overrides=chosen)["it"])
    for trains in (node, node.get("training") or {}):
        if "trainer" in trains:
            trains["trainer"] |= {"epochs": 1, "batch_size": 16, "lr": 0.01}
    for key, most in (("batches", 2), ("steps", 2), ("examples", 16)):
        if key in node:
            node[key] = min(node[key], most)
    return build(node, name)


def _check(stage, model, task):
    """As a plan checks a stage, and those within it."""
    for part in (stage, *within(stage).values()):
        if isinstance(part, ChecksModel):
            part.check(model, SealedTask(task))


def _outputs(module, inputs):
    with torch.no_grad():
        return flatten(module(*inputs))


def _cases():
    for stage in STAGES:
        for kind in KINDS:
            if kind in ("list", "tuple") and stage not in ALSO_SEQUENCES:
                continue
            slow = any(word in stage for word in SLOW) or kind in ("list", "tuple", LABELS)
            yield pytest.param(stage, kind, marks=[pytest.mark.slow] if slow else [], id=f"{stage}-{kind}")


@pytest.mark.parametrize(("name", "kind"), list(_cases()))
def test_a_stage_works_on_a_kind_of_output_or_says_why_not(name, kind, tmp_path):
    task = KindTask(kind)
    spec = ModelSpec("tests.contracts.kinds.TinyNet", {"kind": kind})
    built, stage = spec.build(0).eval(), _stage(name)
    model = copy.deepcopy(built)
    if name.startswith("distill/") and kind in OUTPUTS:
        with pytest.raises(UserError, match=r"losses.kd: kd compares .*of another kind \(losses of features \(hint"):
            _check(stage, model, task)
        if name == "distill/logits":
            return
        stage = _stage(name, "~it.losses.kd")
    _check(stage, model, task)
    context = Context(
        task=SealedTask(task),
        variant=Variant("id", None, frozenset({"float"}), {}),
        baseline=lambda: spec.build(1).eval(),
        build_model=lambda node: copy.deepcopy(built),
        seed=0,
        device=torch.device("cpu"),
        workdir=tmp_path,
        max_steps=3,
    )
    outcome = stage.apply(model, context)
    json.dumps([outcome.facts, outcome.surgery], allow_nan=False)
    inputs = task.example(5)
    found, structure = _outputs(outcome.module, inputs)
    before, as_before = _outputs(built, inputs)
    assert structure == as_before
    assert all(x.isfinite().all() for x in found)
    assert [x.shape for x in found] == [x.shape for x in before]
    assert not all(map(torch.equal, found, before))
    assert math.isfinite(Validation(task, 32, "metric")(outcome.module))
    data = json.loads(json.dumps(outcome.surgery))
    surgeries = ({"by": surgery_name(type(stage)), "data": data},) if data else ()
    folder = tmp_path / "artifact"
    folder.mkdir()
    variant = Variant("v", None, frozenset(), spec.skeleton(built), surgeries)
    reloaded = save_artifact(folder, variant, outcome.module, task.example(2)).module(["tests.contracts.kinds"])
    again, as_again = _outputs(reloaded, inputs)
    assert as_again == structure
    assert all(map(torch.equal, again, found))
