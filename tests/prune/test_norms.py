"""Weights that are computed from others: weight norms are cut, what mixes channels is named."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from optkit.core.errors import UserError
from optkit.prune.structured import prune_structured
from tests.prune import zoo

VECTOR = (torch.randn(4, 8, generator=torch.Generator().manual_seed(0)),)
IMAGE = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)


def old_weight_norm(layer, dim=0):
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        return nn.utils.weight_norm(layer, dim=dim)


def mlp(norm, dim=0):
    layers = [norm(nn.Linear(8, 32), dim=dim), norm(nn.Linear(32, 24), dim=dim), norm(nn.Linear(24, 4), dim=dim)]
    with torch.no_grad():
        for layer in layers:
            g, v = scale_and_direction(layer)
            v.mul_(3 * torch.rand(v.shape[0], 1) + 0.1)  # the length of v says nothing of the weight
            g.mul_(1 + torch.rand(g.shape))
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.Sigmoid(), layers[2])


def scale_and_direction(layer):
    if hasattr(layer, "parametrizations"):
        return layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    return layer.weight_g, layer.weight_v


def weights(model):
    """The weights that layers really use, as plain parameters of a plain model."""
    plain = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 24), nn.Sigmoid(), nn.Linear(24, 4))
    with torch.no_grad():
        for mine, theirs in zip(plain[::2], model[::2], strict=True):
            g, v = scale_and_direction(theirs)
            dims = {"dim": tuple(d for d in range(v.ndim) if g.ndim and g.shape[d] == 1), "keepdim": True}
            mine.weight.copy_(g * v / (v.norm() if g.ndim == 0 else v.norm(**dims)))
            mine.bias.copy_(theirs.bias)
    return plain


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, old_weight_norm])
@pytest.mark.parametrize("dim", [0, 1, None])
def test_weight_norm_is_cut_to_the_weights_that_stay(norm, dim):
    torch.manual_seed(0)
    model = mlp(norm, dim).eval()
    model(*VECTOR)
    state = copy.deepcopy(model.state_dict())
    pruned = prune_structured(model, VECTOR, amount=0.4)
    first, second = (zoo.indices(pruned.plan.kept[pruned.plan.cuts[f"{k}.bias"]["0"]]) for k in (0, 2))
    assert len(first) < 32
    assert len(second) < 24
    dense = weights(model)
    with torch.no_grad():
        dense[2].weight[:, [k for k in range(32) if k not in first]] = 0
        dense[4].weight[:, [k for k in range(24) if k not in second]] = 0
    assert torch.allclose(pruned.module(*VECTOR), dense(*VECTOR), atol=1e-5)
    assert torch.allclose(pruned.module[2].weight, dense[2].weight[second][:, first], atol=1e-6)
    zoo.assert_replays(lambda: mlp(norm, dim), pruned, VECTOR)
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    twice = prune_structured(pruned.module, VECTOR, amount=0.3)
    assert twice.module[0].out_features < len(first)
    twice.module.train()(*VECTOR).sum().backward()
    assert all(p.grad is not None for p in twice.module.parameters())


def test_weight_norms_are_ranked_by_the_weights_not_by_the_length_of_their_directions():
    torch.manual_seed(0)
    layer = parametrizations.weight_norm(nn.Linear(8, 8))
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 4)).eval()
    with torch.no_grad():
        layer.parametrizations.weight.original0.copy_(torch.arange(1.0, 9.0).view(8, 1))
        layer.parametrizations.weight.original1.mul_(torch.arange(8.0, 0.0, -1.0).square().view(8, 1))
        layer.bias.zero_()
        model[2].weight.fill_(0.1)
    plan = prune_structured(model, VECTOR, amount=0.5, criterion="l1").plan
    assert plan.kept[plan.cuts["0.bias"]["0"]] == "4-7"


def test_a_weight_norm_of_a_convolution_before_a_batch_norm():
    def make(norm):
        conv, transposed = norm(nn.Conv2d(3, 16, 3, padding=1)), norm(nn.ConvTranspose2d(16, 12, 2, 2))
        return nn.Sequential(conv, nn.BatchNorm2d(16), nn.ReLU(), transposed, nn.ReLU(), nn.Conv2d(12, 4, 1))

    torch.manual_seed(0)
    model, plain = make(parametrizations.weight_norm).eval(), make(lambda layer: layer).eval()
    pruned = prune_structured(model, IMAGE, amount=0.4)
    assert pruned.module[0].out_channels < 16
    kept = zoo.indices(pruned.plan.kept[pruned.plan.cuts["1.weight"]["0"]])
    second = zoo.indices(pruned.plan.kept[pruned.plan.cuts["3.bias"]["0"]])
    with torch.no_grad():
        for mine, theirs in zip(plain, model, strict=True):
            for name in ("weight", "bias") if hasattr(theirs, "weight") else ():
                getattr(mine, name).copy_(getattr(theirs, name))
        plain[3].weight[[k for k in range(16) if k not in kept]] = 0
        plain[5].weight[:, [k for k in range(12) if k not in second]] = 0
    assert torch.allclose(pruned.module(*IMAGE), plain(*IMAGE), atol=1e-5)


def test_a_direction_that_is_read_without_its_norm_stays_whole():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = parametrizations.weight_norm(nn.Linear(8, 16)), nn.Linear(16, 32), nn.Linear(32, 4)

        def forward(self, x):
            direct = nn.functional.linear(x, self.a.parametrizations.weight.original1)
            return self.c(self.b(self.a(x).relu() + direct).relu())

    model = zoo.randomize(Both())
    pruned = prune_structured(model, VECTOR, amount=0.3)
    assert pruned.module.a.out_features == 16
    assert "read without it" in pruned.plan.frozen["b.weight[1]"][0]
    zoo.assert_exact(model, pruned, VECTOR)


class Positive(nn.Module):
    def forward(self, weight):
        return nn.functional.softplus(weight)


class Standardized(nn.Module):
    """Weight standardization (Qiao et al., 2019), without an epsilon: a filter of zeros would divide by zero."""

    def forward(self, weight):
        return (weight - weight.mean(1, keepdim=True)) / weight.std(1, keepdim=True)


@pytest.mark.parametrize("kind", [Positive, Standardized])
def test_parametrizations_per_channel_are_cut(kind):
    def make():
        first = nn.Linear(8, 32)
        parametrize.register_parametrization(first, "weight", kind())
        return nn.Sequential(first, nn.ReLU(), nn.Linear(32, 4))

    torch.manual_seed(0)
    model = make().eval()
    pruned = prune_structured(model, VECTOR, amount=0.4)
    kept = zoo.indices(pruned.plan.kept[pruned.plan.cuts["2.weight"]["1"]])
    assert pruned.module[0].out_features == len(kept) < 32
    assert torch.allclose(pruned.module[0].weight, model[0].weight[kept])
    zoo.assert_replays(make, pruned, VECTOR)
    with torch.no_grad():
        model[2].weight[:, [k for k in range(32) if k not in kept]] = 0
    assert torch.allclose(pruned.module(*VECTOR), model(*VECTOR), atol=1e-5)


@pytest.mark.parametrize(
    ("wrap", "reason"),
    [
        (parametrizations.spectral_norm, "mv in 2.parametrizations.weight.0"),
        (nn.utils.spectral_norm, "mv in 2"),
        (parametrizations.orthogonal, "tril in 2.parametrizations.weight.0"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_parametrizations_that_mix_channels_are_named(wrap, reason):
    torch.manual_seed(0)
    layers = [nn.Linear(8, 32), wrap(nn.Linear(32, 32)), nn.Linear(32, 16), nn.Linear(16, 4)]
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2], nn.ReLU(), layers[3]).eval()
    pruned = prune_structured(model, VECTOR, amount=0.1)
    assert pruned.module[2].weight.shape[1] == 32
    assert reason in pruned.plan.frozen["0.weight[0]"]
    assert pruned.module[4].out_features < 16
    zoo.assert_exact(model, pruned, VECTOR)
    with pytest.raises(UserError, match=f"at most .* because of .*{reason}"):
        prune_structured(model, VECTOR, amount=0.6)
