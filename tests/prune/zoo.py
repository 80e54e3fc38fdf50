"""Small models of every kind, and the check that a cut is exact, written without the engine."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random norms and statistics, and biases that matter, so that no error hides behind a zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point() or "inv_freq" in name:
                continue
            noise = torch.rand(tensor.shape, generator=generator)
            if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
                tensor.copy_(0.5 + noise)
            elif tensor.ndim == 1:
                tensor.copy_(noise - 0.5)
    return model.eval()


def indices(text: str) -> list[int]:
    """``0-2,5`` as ``[0, 1, 2, 5]``."""
    spans = [part.split("-") for part in text.split(",")]
    return [i for span in spans for i in range(int(span[0]), int(span[-1]) + 1)]


def zeroed(model: nn.Module, plan) -> nn.Module:
    """The dense model with every weight that the plan removes set to zero."""
    dense = copy.deepcopy(model)
    tensors = dict([*dense.named_parameters(), *dense.named_buffers()])
    with torch.no_grad():
        for name, dims in plan.cuts.items():
            for dim, which in dims.items():
                kept = set(indices(plan.kept[which]))
                gone = [i for i in range(tensors[name].shape[int(dim)]) if i not in kept]
                tensors[name].index_fill_(int(dim), torch.tensor(gone), 0)
    return dense


def run(model: nn.Module, inputs) -> list[torch.Tensor]:
    with torch.no_grad():
        output = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    if isinstance(output, torch.Tensor):
        return [output]
    values = output.values() if hasattr(output, "values") else output
    return [value for value in values if isinstance(value, torch.Tensor)]


def assert_exact(model: nn.Module, pruned, inputs, tolerance: float = 1e-4) -> None:
    """The zeroed dense model and the cut one agree, to ``tolerance`` of the spread of the outputs."""
    dense = run(zeroed(model, pruned.plan).eval(), inputs)
    small = run(pruned.module.eval(), inputs)
    assert len(dense) == len(small)
    for a, b in zip(dense, small, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= tolerance * (a - a.mean()).abs().max().clamp_min(1e-6)


def assert_replays(make, pruned, inputs) -> None:
    """The plan turns a fresh instance into a model that takes the pruned weights and gives the same bits."""
    fresh = pruned.plan.from_json(pruned.plan.to_json()).apply(make())
    assert type(fresh) is type(pruned.module)
    fresh.load_state_dict(pruned.module.state_dict())
    for a, b in zip(run(fresh.eval(), inputs), run(pruned.module.eval(), inputs), strict=True):
        assert torch.equal(a, b)


def share(pruned, budget: str = "params") -> float:
    """The share of the budget that was removed."""
    facts = pruned.plan.facts
    return 1 - facts[f"{budget}_after"] / facts[f"{budget}_before"]


class Block(nn.Module):
    """A CIFAR residual block whose shortcut pads channels; ``pad`` may be fixed in the code."""

    def __init__(self, before: int, after: int, stride: int, fixed: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride, extra = stride, (after - before) // 2
        self.shortcut = (lambda x: F.pad(x, (0, 0, 0, 0, extra, extra))) if fixed else None

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1:
            x = x[:, :, ::2, ::2]
            extra = (y.shape[1] - x.shape[1]) // 2
            x = self.shortcut(x) if self.shortcut else F.pad(x, (0, 0, 0, 0, extra, extra))
        return F.relu(x + y)


class CifarResNet(nn.Module):
    def __init__(self, fixed: bool = False):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.layers = nn.Sequential(Block(8, 8, 1, fixed), Block(8, 16, 2, fixed), Block(16, 32, 2, fixed))
        self.linear = nn.Linear(32, 10)

    def forward(self, x):
        x = self.layers(F.relu(self.bn1(self.conv1(x))))
        return self.linear(F.avg_pool2d(x, x.size(3)).flatten(1))


def plain_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 24, 3, padding=1), nn.PReLU(24), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(96, 32), nn.Sigmoid(), nn.Linear(32, 10),
    )  # fmt: skip


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 4))


class Attention(nn.Module):
    """Heads of queries share keys and values in groups; keys and values may be one projection."""

    def __init__(self, dim: int = 16, heads: int = 8, groups: int = 4, tied: bool = False, fused: bool = False):
        super().__init__()
        self.heads, self.groups, self.head_dim = heads, groups, dim // 4
        self.q = nn.Linear(dim, heads * self.head_dim)
        self.kv = nn.Linear(dim, (1 if tied else 2) * groups * self.head_dim)
        self.out = nn.Linear(heads * self.head_dim, dim)
        self.tied = tied

    def forward(self, x):
        batch, length, _ = x.shape
        q = self.q(x).view(batch, length, self.heads, self.head_dim).transpose(1, 2)
        kv = self.kv(x)
        k, v = (kv, kv) if self.tied else kv.chunk(2, -1)
        k, v = (t.view(batch, length, self.groups, self.head_dim).transpose(1, 2) for t in (k, v))
        k, v = (t.repeat_interleave(self.heads // self.groups, 1) for t in (k, v))
        weights = (q @ k.transpose(-1, -2) * 0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, length, self.heads * self.head_dim))


class Encoder(nn.Module):
    """A transformer block with everything hard-wired in the usual ways."""

    def __init__(self, **options):
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attention = Attention(**options)
        self.up, self.gate, self.down = nn.Linear(16, 48), nn.Linear(16, 48), nn.Linear(48, 16)

    def forward(self, tokens):
        x = self.embed(tokens)
        x = x + self.attention(self.norm1(x))
        y = self.norm2(x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return x @ self.embed.weight.T


class RMSDecoder(nn.Module):
    """Hidden features that only RMS norms see can be cut, with weights and epsilons that make up for it."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 24)
        self.norm1, self.norm2 = nn.RMSNorm(24, eps=0.1), nn.RMSNorm(24)
        self.up, self.down = nn.Linear(24, 32, bias=False), nn.Linear(32, 24, bias=False)
        self.head = nn.Linear(24, 20)

    def forward(self, tokens):
        x = self.embed(tokens)
        x = x + self.down(F.gelu(self.up(self.norm1(x))))
        return self.head(self.norm2(x))


class HardCoded(nn.Module):
    """Sizes written into the code: what they touch must stay whole."""

    def __init__(self):
        super().__init__()
        self.conv, self.free = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.mix, self.head = nn.Linear(8 * 64, 16), nn.Linear(24, 5)

    def forward(self, x):
        a = self.mix(self.conv(x).view(-1, 512))
        b = self.free(x).mean((2, 3))
        return self.head(torch.cat([a, b], 1))
