from dataclasses import replace

import pytest
import torch

from optkit.core import ledger
from optkit.core.artifact import open_artifact
from optkit.core.errors import PlanError
from optkit.distill import Distillation
from optkit.engines import Eager
from optkit.measure import Measure
from optkit.pipeline import run
from optkit.prune import DepthPruning, GradualPruning, MagnitudePruning, StructuredPruning
from optkit.quantize import QuantizationAwareTraining
from optkit.recipe.controls import NO_TEACHER, RANDOM_PRUNE, SMALLER_DENSE, control_chain
from optkit.recipe.plan import OTHER, make_plan
from optkit.recipe.recipe import Recipe
from optkit.report import rows
from optkit.report.controls import against_controls
from optkit.training import Train, Trainer


def _train(epochs):
    return Train(Trainer(epochs=epochs, batch_size=64, optimizer="adamw", lr=0.02, schedule="cosine"))


@pytest.fixture
def recipe(digits, tmp_path):
    return Recipe(
        name="controlled",
        model={"_target_": "optkit.models.MLP", "widths": [32, 32], "num_classes": None, "input_shape": None},
        task=digits,
        chain=["train", "prune", "tune"],
        stages={
            "train": _train(3),
            "prune": StructuredPruning(0.5),
            "mask": MagnitudePruning(0.5),
            "tune": _train(1),
            "grow": GradualPruning(0.5, training=_train(1)),
        },
        engines={"eager": Eager()},
        reference=Eager(),
        measure=Measure(batch_sizes=[16], seconds=0.01, memory=False, retries=0),
        controls=[SMALLER_DENSE, RANDOM_PRUNE],
        threads=1,
        out=str(tmp_path / "runs"),
        text="name: controlled\n",
    )


@pytest.mark.slow
def test_controls_get_the_same_training_and_the_same_macs(recipe):
    folder = run(make_plan(recipe)).folder
    records = ledger.read(folder)
    own = {r.stage: r for r in records if r.control is None}
    dense = {r.stage: r for r in records if r.control == SMALLER_DENSE}
    random = {r.stage: r for r in records if r.control == RANDOM_PRUNE}
    assert list(own) == ["train", "prune", "tune"]
    assert list(dense) == ["train", "tune"]
    assert list(random) == ["prune", "tune"]
    assert {r.step for r in dense.values()} == {0, 2}
    for stage in ("train", "tune"):
        assert dense[stage].params == own[stage].params
    macs = {name: group["tune"].find("macs").value for name, group in (("own", own), ("d", dense), ("r", random))}
    assert macs["d"] == pytest.approx(macs["own"], rel=0.05)
    assert macs["r"] == pytest.approx(macs["own"], rel=0.05)
    assert random["prune"].params["criterion"] == "random"
    shown = rows(records)
    margins = {r["control"]: r for r in shown if r["control"] and r["stage"] == "tune"}
    accuracy = {r["control"]: r["quality"] for r in shown if r["stage"] == "tune"}
    for control, row in margins.items():
        assert row["control_margin"] == pytest.approx(accuracy[None] - accuracy[control])
    lines = against_controls(shown)
    named = [(line.split()[0], next(c for c in (RANDOM_PRUNE, SMALLER_DENSE) if c in line)) for line in lines]
    assert named == [("prune", RANDOM_PRUNE), ("tune", RANDOM_PRUNE), ("tune", SMALLER_DENSE)]


@pytest.mark.parametrize(
    ("chain", "control", "message"),
    [
        (["train", "mask"], SMALLER_DENSE, "no stage cuts channels"),
        (["train", "grow"], RANDOM_PRUNE, "no criterion that could be random"),
        (["train", "tune"], RANDOM_PRUNE, "nothing to compare"),
        (["train", "prune"], NO_TEACHER, "no stage has a teacher"),
        (["train", "prune"], "smaler_dense", "did you mean 'smaller_dense'"),
    ],
)
def test_a_control_of_nothing_is_refused(recipe, chain, control, message):
    with pytest.raises(PlanError) as caught:
        make_plan(replace(recipe, chain=chain, controls=[control]))
    assert message in str(caught.value)


def test_blocks_and_masks_are_drawn_at_random_in_the_control():
    chain = [("depth", DepthPruning(0.5), 0), ("mask", MagnitudePruning(0.5, criterion="wanda"), 1)]
    found = [stage for _, stage, _ in control_chain(RANDOM_PRUNE, chain, None)]
    assert found == [DepthPruning(0.5, by="random"), MagnitudePruning(0.5, criterion="random")]
    with pytest.raises(PlanError, match="no stage ranks what it prunes"):
        control_chain(RANDOM_PRUNE, [("depth", DepthPruning(amount=None, keep=[0]), 0)], None)


def test_training_within_a_pruning_is_given_to_the_control_too(recipe):
    steps = StructuredPruning(0.5, steps=3, training=_train(4), between=0.5)
    found = control_chain(SMALLER_DENSE, [("train", _train(3), 0), ("prune", steps, 1)], "id")
    assert [(name, number) for name, _, number in found] == [(SMALLER_DENSE, -1), ("train", 0), ("prune", 1)]
    # 4 epochs after the last step, 2 after each of the two before
    assert found[-1][1].trainer.epochs == 8


@pytest.fixture
def taught(recipe):
    """The recipe with a distillation in the middle of its chain, of which the control is without a teacher."""
    stages = recipe.stages | {"recover": Distillation(trainer=_train(2).trainer)}
    return replace(recipe, chain=["train", "prune", "recover", "tune"], stages=stages, controls=[NO_TEACHER])


@pytest.mark.slow
def test_a_control_without_a_teacher_is_the_chain_trained_by_the_labels(taught, tmp_path):
    done = run(make_plan(taught))
    stages = taught.stages | {"recover": Train(taught.stages["recover"].trainer)}
    plain = run(make_plan(replace(taught, stages=stages, controls=[], out=str(tmp_path / "plain"))))
    # what comes before the first taught stage is the recipe's own, and not made again
    assert done.made == len(taught.chain) + 2
    records = ledger.read(done.folder)
    assert [(r.stage, r.step) for r in records if r.control == NO_TEACHER] == [("recover", 2), ("tune", 3)]
    for name in ("2-recover", "3-tune"):
        control, expected, own = (
            open_artifact(folder / "variants" / f"{prefix}{name}").module().state_dict()
            for folder, prefix in ((done.folder, f"{NO_TEACHER}-"), (plain.folder, ""), (done.folder, ""))
        )
        assert all(torch.equal(control[key], expected[key]) for key in expected)
        assert not all(torch.equal(control[key], own[key]) for key in own)
    shown = rows(records)
    accuracy = {(r["control"], r["stage"]): r["quality"] for r in shown}
    margins = {r["stage"]: r["control_margin"] for r in shown if r["control"]}
    for stage, margin in margins.items():
        assert margin == pytest.approx(accuracy[None, stage] - accuracy[NO_TEACHER, stage])
    lines = against_controls(shown)
    assert [line.split()[0] for line in lines] == ["recover", "tune"]


@pytest.mark.parametrize("kind", [StructuredPruning, GradualPruning, QuantizationAwareTraining])
def test_a_training_within_a_stage_loses_its_teacher_too(kind):
    trainer = _train(4).trainer
    stage = kind(training=Distillation(trainer=trainer))
    chain = [("train", _train(3), 0), ("stage", stage, 1)]
    first, (name, untaught, number) = control_chain(NO_TEACHER, chain, None)
    assert first == chain[0]
    assert (name, number) == ("stage", 1)
    assert untaught == replace(stage, training=Train(trainer))


def test_another_chain_that_is_a_control_by_itself_stays_in_its_place(taught):
    stages = taught.stages | {"tune": Train(taught.stages["recover"].trainer)}
    recipe = replace(taught, chain=["train", "recover", "tune"], stages=stages)
    plan = make_plan(recipe, [["train", "tune"], ["train", "tune"]])
    found = {(step.of, step.chain) for step in plan.steps}
    assert (OTHER, ("tune",)) in found
    assert (NO_TEACHER, ("recover",)) in found
    assert len(plan.steps) == len({step.id for step in plan.steps}) == len(found) + 1
