"""Criteria of one's own, given as a function or by a dotted path."""

import pytest
import torch

from optkit.core.errors import UserError
from optkit.models import SmallCNN
from optkit.prune import StructuredPruning, prune_structured

HERE = f"{__name__}."


def squares(model, batches, loss_fn):
    return {name: p.detach() ** 2 for name, p in model.named_parameters()}


def nothing(model, batches, loss_fn):
    return {}


def unknown(model, batches, loss_fn):
    return {"nowhere": torch.ones(1)}


def flat(model, batches, loss_fn):
    return {name: torch.ones(1) for name, _ in model.named_parameters()}


def negative(model, batches, loss_fn):
    return {name: -p.detach().abs() for name, p in model.named_parameters()}


def fails(model):
    return {}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SmallCNN(num_classes=3, in_channels=1, widths=[8, 8, 8]).eval()


@pytest.mark.parametrize("criterion", [squares, HERE + "squares"])
def test_squares_cut_what_l2_cuts(model, criterion):
    example = (torch.randn(2, 1, 8, 8),)
    own = prune_structured(model, example, amount=0.4, criterion=criterion).plan
    l2 = prune_structured(model, example, amount=0.4, criterion="l2").plan
    assert own.to_dict()["layers"] == l2.to_dict()["layers"]
    assert own.facts["criterion"] == HERE + "squares"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "gives an empty mapping"),
        ("unknown", "gives scores for 'nowhere', which is no parameter"),
        ("flat", r"gives \[1\] for '"),
        ("negative", "that are negative or not finite"),
        ("fails", "fails: TypeError"),
    ],
)
def test_bad_scores_are_one_line_before_any_work(digits, name, message):
    torch.manual_seed(0)
    model = SmallCNN(num_classes=10, in_channels=1, widths=[8, 8, 8]).eval()
    with pytest.raises(UserError, match=message) as caught:
        StructuredPruning(criterion=HERE + name).check(model, digits)
    assert caught.value.key == "criterion"
