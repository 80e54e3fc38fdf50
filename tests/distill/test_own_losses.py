"""Losses of one's own in a distillation."""

import pytest

from optkit.core.errors import UserError
from optkit.distill import Distillation

HERE = f"{__name__}."


def squared(student, teacher, scale=1.0):
    return scale * (student - teacher).square().mean()


def each(student, teacher):
    return (student - teacher).square().mean(-1)


def of_targets(student, teacher, targets):
    return (student - teacher)[range(len(targets)), targets].square().mean()


@pytest.mark.parametrize(
    "losses",
    [
        [HERE + "squared"],
        {"kd": 1.0, HERE + "of_targets": 0.5},
        {HERE + "squared": {"weight": 2, "scale": 3}},
        {HERE + "squared": {"pairs": {"net": "net"}}},
    ],
)
def test_own_losses_train(context, mlp, losses, request):
    if any(isinstance(v, dict) and "pairs" in v for v in (losses.values() if isinstance(losses, dict) else ())):
        name = next(name for name, inner in mlp.named_modules() if name and not list(inner.children()))
        losses = {HERE + "squared": {"pairs": {name: name}}}
    stage = Distillation(losses=losses)
    outcome = stage.apply(mlp, context())
    assert outcome.facts["losses"] == {term.name: term.weight for term in stage._terms}


def test_an_unknown_option_is_named():
    with pytest.raises(UserError, match=r"takes no 'scael' \(did you mean 'scale'"):
        Distillation(losses={HERE + "squared": {"scael": 1}})


def test_a_loss_that_is_no_scalar_is_refused_before_any_training(digits, mlp):
    with pytest.raises(UserError, match=r"gives \[2\] \(it must give a finite scalar"):
        Distillation(losses=[HERE + "each"]).check(mlp, digits)
