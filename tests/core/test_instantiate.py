import pytest

from optkit.core.errors import UserError, did_you_mean
from optkit.core.instantiate import build


def test_nodes_are_built_inside_out():
    stage = build(
        {"_target_": "optkit.training.Train", "trainer": {"_target_": "optkit.training.Trainer", "epochs": 3}}, "s"
    )
    assert stage.trainer.epochs == 3


def test_a_spec_stays_a_spec():
    teacher = {"_target_": "optkit.models.MLP", "widths": [8]}
    stage = build({"_target_": "optkit.distill.Distillation", "teacher": teacher}, "s")
    assert stage.teacher == teacher


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"amount": 1}, r"stages\.x: no _target_"),
        ({"_target_": "optkit.nothing.X"}, r"no module 'optkit\.nothing'"),
        ({"_target_": "optkit.training.Trian"}, "did you mean 'Train'"),
        ({"_target_": "optkit.prune.MagnitudePruning", "amuont": 0.5}, r"stages\.x\.amuont.*did you mean 'amount'"),
        ({"_target_": "optkit.prune.MagnitudePruning", "amount": 1.5}, r"stages\.x\.amount: 1.5 is not a share"),
        (
            {"_target_": "optkit.training.Train", "trainer": {"_target_": "optkit.training.Trainer", "lr": -1}},
            r"stages\.x\.trainer\.lr: -1 is out of range",
        ),
    ],
)
def test_mistakes_name_the_full_key(node, message):
    with pytest.raises(UserError, match=message):
        build(node, "stages.x")


def test_far_off_names_list_what_is_known():
    assert did_you_mean("zzz", ["b", "a"]) == "known: a, b"
