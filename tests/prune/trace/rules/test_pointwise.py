"""Operators that work element by element follow from torch's own tag and definition, not from a list."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from optkit.prune.structured import prune_structured
from tests.prune import zoo

VECTOR = (torch.randn(4, 8, generator=torch.Generator().manual_seed(0)),)
IMAGE = (torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)),)


class Hidden(nn.Module):
    """Two hidden layers with a function between them, which may use two vectors and two buffers of their width."""

    def __init__(self, between, width=32):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 32), nn.Linear(width, 32), nn.Linear(32, 4)
        self.p, self.q = nn.Parameter(torch.rand(32) + 0.5), nn.Parameter(torch.rand(32) + 0.5)
        self.register_buffer("mean", torch.rand(32))
        self.register_buffer("std", torch.rand(32) + 0.5)
        self.between = between

    def forward(self, x):
        return self.c(self.b(self.between(self, self.a(x))).relu())


def columns_zeroed(model, plan):
    """The dense model whose second layer does not read what is cut: right whatever the first one makes of it."""
    dense, kept = (
        type(model)(model.between, model.b.in_features),
        set(zoo.indices(plan.kept[plan.cuts["b.weight"]["1"]])),
    )
    dense.load_state_dict(model.state_dict())
    with torch.no_grad():
        dense.b.weight[:, [k for k in range(model.b.in_features) if k not in kept]] = 0
        rows = set(zoo.indices(plan.kept[plan.cuts["b.weight"]["0"]]))
        dense.c.weight[:, [k for k in range(32) if k not in rows]] = 0
    return dense.eval()


@pytest.mark.parametrize(
    "between",
    [
        lambda m, h: torch.addcmul(m.p, m.q, h),
        lambda m, h: torch.addcmul(h, h, h, value=0.3),
        lambda m, h: h.clone().addcmul_(m.p, h),
        lambda m, h: torch.addcdiv(m.p, h, m.q),
        lambda m, h: torch.lerp(h, m.p, 0.3),
        lambda m, h: torch.lerp(h, 2 * h, m.p),
        lambda m, h: torch.where(h > m.p, h, m.q),
        lambda m, h: torch.logaddexp(h, m.p),
        lambda m, h: torch.atan2(h, m.p),
        lambda m, h: torch.hypot(h, m.p) + torch.copysign(h, m.q),
        lambda m, h: F.softplus(h) + F.hardsigmoid(h) + F.logsigmoid(h),
        lambda m, h: h.clamp(m.p.neg(), m.p).masked_fill(h > 1, 0.5),
        lambda m, h: torch.special.xlog1py(h, m.p),
        lambda m, h: torch.maximum(h, m.p).fmod(m.q),
        lambda m, h: (h - m.mean) / m.std,
        lambda m, h: (h - m.mean) * m.std.rsqrt(),
        lambda m, h: h * m.p.log() + h * m.q.reciprocal() ** 2,
        lambda m, h: torch.addcdiv(h, h, m.std),
    ],
)
def test_what_meets_elementwise_is_cut(between):
    torch.manual_seed(0)
    model = Hidden(between).eval()
    pruned = prune_structured(model, VECTOR, amount=0.3)
    assert pruned.module.a.out_features < 32
    expected = columns_zeroed(model, pruned.plan)(*VECTOR)
    assert torch.allclose(pruned.module.eval()(*VECTOR), expected, atol=1e-5)


def test_halves_of_a_gated_linear_unit_are_cut_together():
    torch.manual_seed(0)
    model = Hidden(lambda m, h: F.glu(h), 16).eval()
    pruned = prune_structured(model, VECTOR, amount=0.3)
    assert pruned.module.a.out_features == 2 * pruned.module.b.in_features < 32
    zoo.assert_exact(model, pruned, VECTOR)


def test_a_divisor_per_channel_may_lead_to_the_output():
    class Standardized(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.c = nn.Linear(8, 32), nn.Linear(32, 4)
            self.register_buffer("mean", torch.rand(32))
            self.register_buffer("std", torch.rand(32) + 0.5)

        def forward(self, x):
            return self.c(((self.a(x) - self.mean) / self.std).relu())

    model = Standardized().eval()
    pruned = prune_structured(model, VECTOR, amount=0.5)
    kept = zoo.indices(pruned.plan.kept[pruned.plan.cuts["std"]["0"]])
    assert torch.equal(pruned.module.std, model.std[kept])
    assert pruned.plan.spared == {"std": [0]}
    gone = [k for k in range(32) if k not in kept]
    with torch.no_grad():
        model.c.weight[:, gone] = 0
    assert torch.allclose(pruned.module(*VECTOR), model(*VECTOR), atol=1e-5)


def test_activations_that_divide_are_named():
    model = Hidden(lambda m, h: h / h.sum(0, keepdim=True)).eval()
    pruned = prune_structured(model, VECTOR, amount=0.2)
    assert pruned.module.a.out_features == 32
    assert pruned.plan.frozen["a.weight[0]"] == ["div in the model, not finite at zero"]


class ResponseNorm(nn.Module):
    """A block of ConvNeXt V2 as timm writes it: global response normalization by ``addcmul``."""

    def __init__(self, width):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.weight, self.bias = nn.Parameter(torch.rand(4 * width)), nn.Parameter(torch.rand(4 * width))

    def forward(self, x):
        y = F.gelu(self.up(self.norm(self.depthwise(x).permute(0, 2, 3, 1))))
        size = y.norm(p=2, dim=(1, 2), keepdim=True)
        size = size / (size.mean(dim=-1, keepdim=True) + 1e-6)
        y = y + torch.addcmul(self.bias.view(1, 1, 1, -1), self.weight.view(1, 1, 1, -1), y * size)
        return x + self.down(y).permute(0, 3, 1, 2)


def test_global_response_normalization_by_addcmul():
    def make():
        blocks = [nn.Conv2d(3, 16, 4, 4), ResponseNorm(16), ResponseNorm(16)]
        return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))

    torch.manual_seed(0)
    model = zoo.randomize(make())
    pruned = prune_structured(model, IMAGE, amount=0.5)
    assert pruned.module[1].up.out_features < 64
    zoo.assert_exact(model, pruned, IMAGE)
    zoo.assert_replays(make, pruned, IMAGE)
