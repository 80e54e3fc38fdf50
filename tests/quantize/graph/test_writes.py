"""What a model writes through a view of a tensor is read as it was written, in int8 too."""

import pytest
import torch
from torch import nn

from optkit.models.resnet_cifar import ResNetCIFAR
from optkit.quantize import convert_qat, prepare_qat, quantize_dynamic, quantize_static
from optkit.quantize.graph.writes import reads_what_is_written

X = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Cleared(nn.Module):
    """Half of the channels are set to zero through a view."""

    def __init__(self, linear=False):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 16) if linear else nn.Conv2d(3, 16, 3, padding=1)
        self.last = nn.Linear(16, 4) if linear else nn.Conv2d(16, 4, 3)
        self.linear = linear

    def forward(self, x):
        y = self.first(x)
        if self.linear:
            y[..., :8] = 0
        else:
            y[:, :8] = 0
        return self.last(y)


class Scaled(Cleared):
    """A half is multiplied in place, and the whole is read."""

    def forward(self, x):
        y = self.first(x).relu()
        y[:, :8].mul_(4.0)
        return self.last(y)


def relative_error(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("kind", [Cleared, Scaled])
@pytest.mark.parametrize("target", ["inductor", "onnxruntime", "openvino"])
def test_static_int8_reads_what_was_written(kind, target):
    model = kind().eval()
    found = quantize_static(model, X, [X], target=target)
    with torch.no_grad():
        assert relative_error(found.module(X), model(X)) < 0.05


def test_dynamic_int8_reads_what_was_written():
    model = Cleared(linear=True).eval()
    with torch.no_grad():
        assert relative_error(quantize_dynamic(model, X).module(X), model(X)) < 0.05


def test_a_model_that_is_trained_for_int8_reads_what_was_written():
    model = Cleared().eval()
    prepared = prepare_qat(model, X, [X])
    with torch.no_grad():
        assert relative_error(convert_qat(prepared).module(X), model(X)) < 0.05


def program_of(model):
    return torch.export.export(model.eval(), (X,), strict=False).graph


def test_operators_in_place_whose_result_is_read_stay_as_they_are():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(inplace=True)

        def forward(self, x):
            y = self.relu(self.first(x))
            y += x
            return y.relu_()

    assert not reads_what_is_written(program_of(Sum()))
    assert not reads_what_is_written(program_of(ResNetCIFAR(8)))
    assert reads_what_is_written(program_of(Cleared()))
    assert reads_what_is_written(program_of(Scaled()))
