from dataclasses import replace

import pytest
import torch

from optkit.core import ledger
from optkit.core.errors import PlanError
from optkit.core.macs import count_macs
from optkit.engines import Eager
from optkit.measure import Measure
from optkit.pipeline import run
from optkit.plan import Recipe, make_plan
from optkit.prune import MagnitudePruning, StructuredPruning
from optkit.prune.controls import RANDOM_PRUNE, SMALLER_DENSE, SmallerDense, control_chain
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
        stages={"train": _train(3), "prune": StructuredPruning(0.5), "mask": MagnitudePruning(0.5), "tune": _train(1)},
        engines={"eager": Eager()},
        reference=Eager(),
        measure=Measure(batch_sizes=[16], seconds=0.01, memory=False, retries=0),
        controls=[SMALLER_DENSE, RANDOM_PRUNE],
        threads=1,
        out=str(tmp_path / "runs"),
        text="name: controlled\n",
    )


def test_controls_get_the_same_training_and_the_same_macs(recipe):
    folder = run(recipe).folder
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
    accuracy = {r["control"]: r["accuracy"] for r in shown if r["stage"] == "tune"}
    for control, row in margins.items():
        assert row["control_margin"] == pytest.approx(accuracy[None] - accuracy[control])
    lines = against_controls(shown, "{:+.3f}".format)
    named = [(line.split()[0], next(c for c in (RANDOM_PRUNE, SMALLER_DENSE) if c in line)) for line in lines]
    assert named == [("prune", RANDOM_PRUNE), ("tune", RANDOM_PRUNE), ("tune", SMALLER_DENSE)]


def test_a_smaller_dense_model_is_fresh_and_evenly_narrow(context, mlp, digits):
    wide = mlp.__class__(input_shape=[1, 8, 8], widths=[64, 64])
    small = mlp.__class__(input_shape=[1, 8, 8], widths=[20, 64])
    ctx = context()
    made = replace(
        ctx,
        variant=replace(ctx.variant, model={"target": "optkit.models.MLP", "params": {}}),
        build_model=lambda node: wide,
        module_of=lambda variant: small,
    )
    outcome = SmallerDense("cut").apply(mlp, made)
    wanted, found = (count_macs(m, digits.example(2)) for m in (small, outcome.module))
    assert found == pytest.approx(wanted, rel=0.05)
    again = SmallerDense.replay(
        mlp.__class__(input_shape=[1, 8, 8], widths=[64, 64]), outcome.surgery, digits.example(2)
    )
    again.load_state_dict(outcome.module.state_dict())
    assert torch.equal(again(*digits.example(2)), outcome.module(*digits.example(2)))


@pytest.mark.parametrize(
    ("chain", "control", "message"),
    [
        (["train", "mask"], SMALLER_DENSE, "no stage cuts channels"),
        (["train", "mask"], RANDOM_PRUNE, "no criterion that could be random"),
        (["train", "tune"], RANDOM_PRUNE, "nothing to compare"),
        (["train", "prune"], "smaler_dense", "did you mean 'smaller_dense'"),
    ],
)
def test_a_control_of_nothing_is_refused(recipe, chain, control, message):
    with pytest.raises(PlanError) as caught:
        make_plan(replace(recipe, chain=chain, controls=[control]))
    assert message in str(caught.value)


def test_training_within_a_pruning_is_given_to_the_control_too(recipe):
    steps = StructuredPruning(0.5, steps=3, training=_train(4), between=0.5)
    found = control_chain(SMALLER_DENSE, [("train", _train(3), 0), ("prune", steps, 1)], "id")
    assert [(name, number) for name, _, number in found] == [(SMALLER_DENSE, -1), ("train", 0), ("prune", 1)]
    # 4 epochs after the last step, 2 after each of the two before
    assert found[-1][1].trainer.epochs == 8
