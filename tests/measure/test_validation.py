import pytest
import torch

from optkit.measure.validation import Validation


@pytest.mark.parametrize("examples", [7, 20, 10_000])
def test_it_is_the_metric_on_examples_spread_over_validation(digits, mlp, examples):
    (batch,) = digits.batches("validation", 10_000)
    size = len(batch)
    places = torch.linspace(0, size - 1, min(examples, size)).round().long()
    with torch.no_grad():
        logits = mlp(batch.inputs[0][places])
    loss = torch.nn.functional.cross_entropy(logits, batch.targets[places])
    assert Validation(digits, examples)(mlp) == pytest.approx(loss.item(), rel=1e-5)
    right = (logits.argmax(1) == batch.targets[places]).float().mean()
    assert Validation(digits, examples, "metric")(mlp) == pytest.approx(right.item())
