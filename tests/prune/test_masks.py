import numpy as np
import pytest
import torch
from torch import nn

from optkit.core.errors import UserError
from optkit.models import SmallCNN
from optkit.prune import MagnitudePruning, Pattern, apply_masks_, magnitude_masks


@pytest.mark.parametrize("amount", [0.1, 0.5, 0.93])
def test_global_masks_remove_exactly_the_smallest(amount):
    torch.manual_seed(0)
    model = SmallCNN(4, 1, [6, 8])
    masks = magnitude_masks(model, amount)
    assert set(masks) == {"features.0.weight", "features.4.weight", "classifier.weight"}
    parameters = dict(model.named_parameters())
    kept = np.concatenate([parameters[n].detach().abs()[m].numpy() for n, m in masks.items()])
    gone = np.concatenate([parameters[n].detach().abs()[~m].numpy() for n, m in masks.items()])
    assert len(gone) == round(amount * (len(kept) + len(gone)))
    assert gone.max() <= kept.min()


def test_local_masks_remove_the_same_share_of_each_layer():
    masks = magnitude_masks(SmallCNN(4, 1, [6, 8]), 0.5, scope="local")
    for mask in masks.values():
        assert (~mask).sum().item() == round(0.5 * mask.numel())


def test_ties_are_cut_to_the_exact_number():
    model = nn.Linear(10, 10)
    nn.init.ones_(model.weight)
    masks = magnitude_masks(model, 0.25)
    assert (~masks["weight"]).sum().item() == 25


def test_applying_leaves_kept_weights_alone():
    model = SmallCNN(4, 1, [6])
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    masks = magnitude_masks(model, 0.5)
    apply_masks_(model, masks)
    for name, parameter in model.named_parameters():
        expected = before[name] * masks[name] if name in masks else before[name]
        assert torch.equal(parameter, expected)


def _brute_force(weight, kept, group):
    """A pattern's mask along dimension 1, one group at a time."""
    mask = np.zeros(weight.shape, bool)
    for place in np.ndindex(weight.shape[0], *weight.shape[2:]):
        for start in range(0, weight.shape[1], group):
            inputs = range(start, start + group)
            largest = sorted(inputs, key=lambda i: abs(weight[(place[0], i, *place[1:])]))[-kept:]
            for i in largest:
                mask[(place[0], i, *place[1:])] = True
    return mask


@pytest.mark.parametrize("text", ["2:4", "1:4", "1:2", "3:8"])
@pytest.mark.parametrize("layer", [nn.Linear(16, 5), nn.Conv2d(8, 6, 3), nn.Conv1d(16, 4, 2, groups=2)])
def test_a_pattern_keeps_the_largest_of_every_group_of_inputs(text, layer):
    pattern = Pattern.parse(text)
    mask = magnitude_masks(layer, None, pattern=pattern)["weight"]
    assert np.array_equal(mask.numpy(), _brute_force(layer.weight.detach().numpy(), pattern.kept, pattern.group))
    assert (~mask).float().mean().item() == pytest.approx(pattern.removed)


def test_a_transposed_convolutions_inputs_are_its_first_dimension():
    layer = nn.ConvTranspose2d(8, 6, 3)
    mask = magnitude_masks(layer, None, pattern=Pattern(2, 4))["weight"]
    weight = layer.weight.detach().transpose(0, 1).numpy()
    assert np.array_equal(mask.transpose(0, 1).numpy(), _brute_force(weight, 2, 4))


@pytest.mark.parametrize("amount", [0.1, 0.25, 0.5])
def test_a_part_of_a_pattern_is_the_smallest_of_what_the_pattern_removes(amount):
    layer = nn.Linear(16, 8)
    whole = magnitude_masks(layer, None, pattern=Pattern(2, 4))["weight"]
    part = magnitude_masks(layer, amount, pattern=Pattern(2, 4))["weight"]
    gone = round(amount * part.numel())
    threshold = layer.weight.abs()[~whole].sort().values[gone - 1]
    assert torch.equal(part, whole | (layer.weight.abs() > threshold))


def test_layers_that_a_pattern_does_not_fit_and_protected_ones_stay_whole():
    model = SmallCNN(4, 1, [6, 8])
    assert set(magnitude_masks(model, None, pattern=Pattern(2, 4))) == {"classifier.weight"}
    assert set(magnitude_masks(model, 0.5, protect=["features.*"])) == {"classifier.weight"}


def test_a_shared_weight_counts_once():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Embedding(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    model[3].weight = model[2].weight
    masks = magnitude_masks(model, 0.5)
    apply_masks_(model, masks)
    assert set(masks) == {"0.weight"}
    assert (model[1].weight == 0).sum() == 32


@pytest.mark.parametrize("text", ["4:4", "0:4", "5:4", "2-4", 124, None])
def test_what_is_no_pattern_is_refused(text):
    with pytest.raises(UserError, match=r"is not a pattern.*quotes"):
        Pattern.parse(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"amount": None}, "amount: no amount"),
        ({"amount": 0.6, "pattern": Pattern(2, 4)}, "amount: 0.6 is more than the 0.5 that 2:4 removes"),
        ({"amount": None, "pattern": Pattern(2, 16)}, "pattern: no layer's inputs divide by 16"),
        ({"amount": 0.5, "protect": ["clasifier"]}, "did you mean 'classifier'"),
        ({"amount": 0.5, "protect": ["*"]}, "protect: no layer that is not protected"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=message):
        magnitude_masks(SmallCNN(4, 1, [6, 8]), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"amount": None}, "amount: None is not a share"),
        ({"amount": 0.5, "pattern": "1:4"}, r"amount: the pattern 1:4 removes 0.75, not 0.5 \(null leaves"),
        ({"pattern": "half"}, "pattern: 'half' is not a pattern"),
        ({"scope": "globl"}, "did you mean 'global'"),
    ],
)
def test_the_stages_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=message):
        MagnitudePruning(**options)


def test_the_stage_says_what_it_masked_and_that_nothing_runs_faster(context):
    model = SmallCNN(4, 1, [6, 8])
    facts = MagnitudePruning(pattern="2:4").apply(model, context()).facts
    assert facts["sparsity"] == {"classifier.weight": 0.5}
    assert facts["left_whole"] == ["features.0.weight", "features.4.weight"]
    assert facts["weights_removed"] == facts["weights"] / 2 == (model.classifier.weight == 0).sum()
    assert "no latency" in facts["kernels"]


@pytest.mark.parametrize("amount", [-0.1, 1.5, "half"])
def test_what_is_no_share_of_the_weights_is_refused(amount):
    with pytest.raises(UserError, match="amount: .* is no share of the weights"):
        magnitude_masks(SmallCNN(4, 1, [6, 8]), amount=amount)
