import numpy as np
import pytest
import torch

from optkit.models import SmallCNN
from optkit.prune import apply_masks_, magnitude_masks


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
    model = torch.nn.Linear(10, 10)
    torch.nn.init.ones_(model.weight)
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
