from dataclasses import dataclass, replace
from typing import ClassVar

import pytest

from optkit.core.errors import PlanError, UserError
from optkit.core.targets import build
from optkit.distill import LogitDistillation
from optkit.engines import Eager, Inductor
from optkit.plan import Recipe, check_chain, make_plan, params_of
from optkit.prune import GradualPruning, MagnitudePruning
from optkit.quantize import StaticQuantization
from optkit.training import Train, Trainer

MODEL = {"_target_": "optkit.models.MLP", "widths": [8], "num_classes": None, "input_shape": None}


@pytest.fixture
def recipe(digits):
    stages = {
        "train": Train(),
        "tune": Train(),
        "mask": MagnitudePruning(),
        "recover": LogitDistillation(),
        "quantize": StaticQuantization(),
    }
    engines = {"eager": Eager(), "inductor": Inductor()}
    return Recipe("r", dict(MODEL), digits, ["train", "mask", "recover", "quantize"], stages, engines, Eager())


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        (["train", "quantize", "recover"], "'recover' needs a model that is float, which 'quantize' took away.*before"),
        (["train", "quantize", "mask"], "'mask' needs a model that is float"),
        (["train", "quantise"], "did you mean 'quantize'"),
        (["train", "mask", "mask"], "'mask' stands twice"),
    ],
)
def test_a_chain_that_cannot_work_is_refused(recipe, chain, message):
    with pytest.raises(PlanError, match=message):
        check_chain(replace(recipe, chain=chain))


def test_a_variant_that_no_engine_runs_is_refused(recipe):
    with pytest.raises(PlanError, match="no engine runs the last variant.*eager"):
        check_chain(replace(recipe, engines={"eager": Eager()}))


def test_an_engine_that_is_not_there_is_refused(recipe, monkeypatch):
    monkeypatch.setattr(Inductor, "unavailable", lambda self: "no C++ compiler found (install g++)")
    with pytest.raises(UserError, match=r"engines\.inductor: does not work here.*install g\+\+"):
        check_chain(recipe)


@pytest.mark.parametrize(
    ("chain", "baseline", "expected"),
    [
        (["train", "mask", "recover"], "auto", ["train", "mask", "recover"]),
        (["train", "tune", "mask"], "auto", ["tune", "mask"]),
        (["mask", "train"], "auto", ["model", "mask", "train"]),
        (["train", "mask", "recover"], "mask", ["mask", "recover"]),
        (["train", "mask"], "model", ["model", "train", "mask"]),
        ([], "auto", ["model"]),
    ],
)
def test_the_baseline_is_what_opens_the_chain_or_what_the_recipe_names(recipe, chain, baseline, expected):
    plan = make_plan(replace(recipe, chain=chain, baseline=baseline))
    assert [s.name for s in plan.measured] == expected
    assert [s.number for s in plan.measured] == list(range(len(expected)))


def test_an_unknown_baseline_is_refused(recipe):
    with pytest.raises(PlanError, match="baseline.*did you mean 'train'"):
        check_chain(replace(recipe, baseline="trian"))


def _ids(recipe):
    return [step.id for step in make_plan(recipe).steps]


def test_ids_are_the_same_for_the_same_recipe_and_prefix(recipe):
    assert _ids(recipe) == _ids(replace(recipe))
    assert _ids(replace(recipe, chain=["train", "mask"])) == _ids(recipe)[:3]


@dataclass
class Foreign:
    """A stage of somebody else's package."""

    technique: ClassVar[str] = "foreign"
    needs: ClassVar[frozenset[str]] = frozenset()
    adds: ClassVar[frozenset[str]] = frozenset()
    drops: ClassVar[frozenset[str]] = frozenset()

    def apply(self, module, ctx):
        raise AssertionError("never run here")


@pytest.mark.parametrize(
    ("change", "first_changed"),
    [
        ({"seed": 1}, 0),
        ({"model": MODEL | {"widths": [9]}}, 0),
        ({"stages": {"train": Train(Trainer(epochs=11))}}, 1),
        ({"max_steps": 3}, 1),
        ({"stages": {"mask": MagnitudePruning(0.6)}}, 2),
        ({"stages": {"mask": Foreign()}}, 2),
        ({"stages": {"recover": LogitDistillation(temperature=2.0)}}, 3),
        ({"threads": 1}, 5),
        ({"out": "elsewhere"}, 5),
    ],
)
def test_ids_change_with_what_decides_the_weights_and_from_there_on(recipe, change, first_changed):
    stages = recipe.stages | change.get("stages", {})
    before, after = _ids(recipe), _ids(replace(recipe, **(change | {"stages": stages})))
    assert [a == b for a, b in zip(before, after, strict=True)] == [n < first_changed for n in range(5)]


def test_the_kind_of_a_training_within_a_stage_decides_the_id_and_is_in_its_params(recipe):
    @dataclass
    class Other(Train):
        """As `Train` by its fields."""

    ours, theirs = (
        replace(recipe, stages=recipe.stages | {"mask": GradualPruning(training=t())}) for t in (Train, Other)
    )
    assert _ids(ours)[2] != _ids(theirs)[2]
    params = params_of(ours.stages["mask"])
    assert params["training"]["_target_"] == "optkit.training.stages.Train"
    assert build({"_target_": "optkit.prune.GradualPruning", **params}, "mask") == ours.stages["mask"]


def test_other_data_is_another_variant(recipe):
    from optkit.tasks import Digits

    assert _ids(recipe)[0] != _ids(replace(recipe, task=Digits(image_size=8, crop=1, limit=255)))[0]


def test_changed_code_is_another_variant(recipe, monkeypatch):
    from optkit import plan

    before = _ids(recipe)
    real = plan._code
    monkeypatch.setattr(plan, "_code", lambda *folders: real(*folders) + ("x" if folders == ("prune",) else ""))
    assert [a == b for a, b in zip(before, _ids(recipe), strict=True)] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"_target_": "optkit.models.MLP", "input_shape": [5]}, r"MLP does not take this task's inputs \[2, 1, 8, 8\]"),
        (
            {"_target_": "optkit.models.MLP", "num_classes": 3, "input_shape": None},
            r"\[2, 3\] for 2 examples of 10 classes",
        ),
    ],
)
def test_a_model_that_does_not_fit_the_task_is_refused(recipe, model, message):
    with pytest.raises(UserError, match=message):
        make_plan(replace(recipe, model=model))
