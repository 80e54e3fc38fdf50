"""Random small graphs: whatever is wired together, the cut stays exact."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from optkit.core.errors import UserError
from optkit.prune.structured import prune_structured
from tests.prune import zoo

INPUT = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.b = nn.Conv2d(width, 12, 3, padding=1), nn.Conv2d(12, width, 1)
        self.norm = nn.BatchNorm2d(12)

    def forward(self, x):
        return x + self.b(F.relu(self.norm(self.a(x))))


class Concat(nn.Module):
    """Dense connectivity: the input and what is made of it, side by side, then mixed back."""

    def __init__(self, width):
        super().__init__()
        self.a, self.mix = nn.Conv2d(width, 6, 1), nn.Conv2d(width + 6, width, 1)

    def forward(self, x):
        return self.mix(torch.cat([self.a(x).tanh(), x], 1))


class Split(nn.Module):
    """Half the channels pass by, the other half are worked on, as in ShuffleNetV2."""

    def __init__(self, width):
        super().__init__()
        self.a = nn.Conv2d(width // 2, width // 2, 1)

    def forward(self, x):
        kept, worked = x.chunk(2, 1)
        return torch.cat([kept, F.gelu(self.a(worked))], 1)


class Gated(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.both, self.out = nn.Conv2d(width, 20, 1), nn.Conv2d(10, width, 1)

    def forward(self, x):
        a, b = self.both(x).split(10, 1)
        return self.out(a.sigmoid() * b)


class Grouped(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=4), nn.GroupNorm(4, width)

    def forward(self, x):
        return F.relu(self.norm(self.a(x)))


class Depthwise(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.b = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.ConvTranspose2d(width, width, 1)

    def forward(self, x):
        return self.b(F.silu(self.a(x)))


class Shuffle(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.groups = nn.Conv2d(width, width, 1, groups=2), 2

    def forward(self, x):
        x = self.a(x)
        n, c, h, w = x.shape
        return x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class Presumed(Shuffle):
    """The size of the input is used for the output, so only equal cuts of both would run."""

    def forward(self, x):
        n, c, h, w = x.shape
        return self.a(x).view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Squeeze(nn.Module):
    """Squeeze and excitation: the gate is not zero where its input is."""

    def __init__(self, width):
        super().__init__()
        self.down, self.up = nn.Linear(width, 6), nn.Linear(6, width)

    def forward(self, x):
        return x * self.up(F.relu(self.down(x.mean((2, 3))))).sigmoid()[:, :, None, None]


class SelfAttention(nn.Module):
    """Positions attend to each other; queries and keys share one projection if tied."""

    def __init__(self, width, tied):
        super().__init__()
        self.inner = zoo.Attention(width, heads=4, groups=4 if tied else 2, tied=tied)

    def forward(self, x):
        n, c, h, w = x.shape
        return x + self.inner(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(n, c, h, w)


class Tied(nn.Module):
    """One weight used in two places."""

    def __init__(self, width):
        super().__init__()
        self.a, self.b = nn.Conv2d(width, width, 1, bias=False), nn.Conv2d(width, width, 1)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(F.relu(self.a(x)))


BLOCKS = {
    "residual": Residual,
    "concat": Concat,
    "split": Split,
    "gated": Gated,
    "grouped": Grouped,
    "depthwise": Depthwise,
    "shuffle": Shuffle,
    "presumed": Presumed,
    "squeeze": Squeeze,
    "attention": lambda width: SelfAttention(width, tied=False),
    "shared_keys": lambda width: SelfAttention(width, tied=True),
    "tied": Tied,
}


def build(names: list[str], head: str) -> nn.Module:
    width = 16
    heads = {
        "pool": [nn.AdaptiveAvgPool2d(1), nn.Flatten()],
        "flat": [nn.MaxPool2d(4), nn.Flatten()],
    }
    blocks = [nn.Conv2d(3, width, 3, padding=1), *(BLOCKS[name](width) for name in names), *heads[head]]
    return nn.Sequential(*blocks, nn.Linear(width * (4 if head == "flat" else 1), 5))


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    names=st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=4),
    head=st.sampled_from(["pool", "flat"]),
    amount=st.sampled_from([0.1, 0.3, 0.5]),
    scope=st.sampled_from(["global", "local"]),
    budget=st.sampled_from(["params", "macs"]),
)
def test_random_graphs_stay_exact(names, head, amount, scope, budget):
    torch.manual_seed(0)
    model = zoo.randomize(build(names, head))
    try:
        pruned = prune_structured(model, INPUT, amount=amount, scope=scope, budget=budget)
    except UserError as error:
        if "at most" in str(error) or "nothing in this model" in str(error):
            return
        raise
    assert zoo.share(pruned, budget) > 0
    zoo.assert_exact(model, pruned, INPUT)
    zoo.assert_replays(lambda: build(names, head), pruned, INPUT)


def test_every_block_alone_can_be_cut():
    for name in BLOCKS:
        model = zoo.randomize(build([name], "pool"))
        if name == "presumed":
            continue
        pruned = prune_structured(model, INPUT, amount=0.3)
        assert zoo.share(pruned) > 0.2, name
        zoo.assert_exact(model, pruned, INPUT)
