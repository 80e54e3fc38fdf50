"""int8 of concatenations on OpenVINO, on this processor's kernels and on those of one that has AVX2 only."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from optkit import engines
from optkit.quantize import quantize_static, replay_static


class Concatenated(nn.Module):
    """A convolution of two branches; what stands behind each branch is chosen by name."""

    BRANCHES = {
        "signed": lambda s, x: (s.a(x), s.b(x)),
        "silu": lambda s, x: (F.silu(s.a(x)), F.silu(s.b(x))),
        "hardswish": lambda s, x: (F.hardswish(s.a(x)), F.hardswish(s.b(x))),
        "sigmoid": lambda s, x: (torch.sigmoid(s.a(x)), s.b(x)),
        "relu and signed": lambda s, x: (F.relu(s.a(x)), s.b(x)),
        "input": lambda s, x: (s.a(x), x.repeat(1, 2, 1, 1)),
        "transposed": lambda s, x: (s.up(F.max_pool2d(F.relu(s.a(x)), 2)), F.relu(s.b(x))),
        "other scale": lambda s, x: (s.a(x), 20 * s.b(x)),
        "resized": lambda s, x: (F.silu(s.a(x)), F.interpolate(F.silu(s.b(F.avg_pool2d(x, 2))), scale_factor=2)),
        "nested": lambda s, x: (torch.cat([s.a(x), x], 1), x),
    }

    def __init__(self, branches):
        super().__init__()
        self.branches = self.BRANCHES[branches]
        self.a, self.b = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.last = nn.Conv2d(16, 8, 3, padding=1)

    def forward(self, x):
        return self.last(torch.cat(self.branches(self, x), 1))


def decibels(expected, actual):
    return float(10 * torch.log10(expected.square().sum() / (actual - expected).square().sum()))


def measured(branches):
    """dB of the graph and of OpenVINO against the float model, and the int8 convolution kernels that ran."""
    torch.manual_seed(0)
    model = Concatenated(branches).eval()
    batches = [(torch.randn(4, 4, 8, 8),) for _ in range(2)]
    found = quantize_static(model, batches[0], batches, target="openvino", reduce_range=True)
    session = engines.compile(found.module, batches[0], engine="openvino", threads=1)
    with torch.no_grad():
        expected, graph = model(*batches[0]), found.module(*batches[0])
    executed = [node.get_rt_info() for node in session.compiled.get_runtime_model().get_ops()]
    kernels = [info["primitiveType"].astype(str) for info in executed if info["layerType"].astype(str) == "Convolution"]
    return decibels(expected, graph), decibels(expected, session(*batches[0])), kernels


@pytest.mark.slow
@pytest.mark.parametrize("branches", Concatenated.BRANCHES)
def test_a_concatenation_is_on_openvino_what_it_is_in_the_graph(branches):
    graph, engine, kernels = measured(branches)
    assert graph > 25
    assert engine > graph - 0.5
    assert all("I8" in kernel for kernel in kernels)


@pytest.mark.slow
def test_a_concatenation_is_on_avx2_what_it_is_in_the_graph():
    code = (
        "import json; from tests.quantize.test_openvino_concatenation import Concatenated, measured;"
        "print(json.dumps([measured(name) for name in ('signed', 'silu', 'input', 'transposed')]))"
    )
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    for graph, engine, kernels in json.loads(done.stdout.splitlines()[-1]):
        assert engine > graph - 0.5 > 24.5
        assert not any("avx512" in kernel for kernel in kernels)


def test_a_variant_with_signed_activations_opens_with_the_same_values():
    torch.manual_seed(0)
    model, example = Concatenated("silu").eval(), (torch.randn(4, 4, 8, 8),)
    found = quantize_static(model, example, [example], target="openvino")
    signed = {
        name: [scale, point - 128, -128, 127] if point == 128 and high == 255 else [scale, point, low, high]
        for name, (scale, point, low, high) in found.activations.items()
    }
    assert signed != found.activations
    older = replay_static(model, example, signed, found.reduce_range, "openvino")
    older.load_state_dict(found.module.state_dict())
    with torch.no_grad():
        assert torch.equal(older(*example), found.module(*example))
