"""A classification task with a loss and metrics of one's own."""

import pytest
import torch

from optkit.core.errors import UserError
from optkit.core.instantiate import named_paths
from optkit.core.task import NO_LABEL, Batch
from optkit.tasks import Digits


def squared(logits, targets):
    return (logits - torch.eye(10)[targets]).square().mean()


def by_example(logits, targets):
    return (logits - torch.eye(10)[targets]).square().mean(1)


def detached(logits, targets):
    return logits.detach().mean()


def broken(logits, targets):
    raise ValueError("no such thing")


def whole(outputs, targets):
    return (outputs.argmax(-1) == targets).float().mean()


def _task(**options):
    return Digits(image_size=8, crop=1, limit=64, **options)


def test_the_loss_is_ones_own_and_leaves_out_what_has_no_label():
    task = _task(loss_function=f"{__name__}.squared")
    logits = torch.randn(4, 10)
    batch = Batch((logits,), torch.tensor([1, NO_LABEL, 3, NO_LABEL]), torch.arange(4))
    assert float(task.loss(logits, batch)) == pytest.approx(float(squared(logits[[0, 2]], torch.tensor([1, 3]))))
    nothing = Batch((logits,), torch.full((4,), NO_LABEL), torch.arange(4))
    assert float(task.loss(logits, nothing)) == 0.0
    assert named_paths(task) == [f"{__name__}.squared"]
    assert task.mismatch(logits[:2], 2) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_function": f"{__name__}.sqared"}, "loss_function: .* has no 'sqared' .*did you mean 'squared'"),
        ({"loss_function": f"{__name__}.by_example"}, r"task.loss_function: .* gives \[2\], not one number"),
        ({"loss_function": f"{__name__}.broken"}, "fails: ValueError: no such thing"),
        ({"loss_function": f"{__name__}.detached"}, "task.loss_function: the loss .* has no gradient"),
        ({"metrics": [f"{__name__}.whole"]}, "task.metrics: the metric 'whole'"),
        ({"metrics": [f"{__name__}.broken"]}, "the metric 'broken' fails: ValueError"),
    ],
)
def test_mistakes_are_found_on_the_first_examples(options, message):
    with pytest.raises(UserError, match=message):
        _task(**options).mismatch(torch.randn(2, 10), 2)


def test_label_smoothing_is_of_the_built_in_loss():
    task = _task(loss_function=f"{__name__}.squared")
    with pytest.raises(UserError, match="label smoothing is of the built-in loss"):
        task.loss(torch.randn(2, 10), next(task.batches("train", 2)), 0.1)
