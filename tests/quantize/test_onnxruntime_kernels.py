"""The int8 kernels that ONNX Runtime makes of a graph, beside those that it makes of its own quantizer's file."""

from collections import Counter

import onnx
import onnxruntime as ort
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
from onnxruntime.quantization import quantize_static as their_static
from torch import nn

from optkit.engines.onnx_file import to_onnx
from optkit.quantize import quantize_static

pytestmark = pytest.mark.slow

CLAMPS = {
    "relu": nn.functional.relu,
    "relu6": nn.functional.relu6,
    "hardtanh": lambda x: nn.functional.hardtanh(x, 0.0, 6.0),
    "clamp": lambda x: x.clamp(0, 6),
    "clamp at zero": lambda x: x.clamp(min=0),
    "clamp_min": lambda x: x.clamp_min(0.0),
}


class InvertedResidual(nn.Module):
    """A block of MobileNetV2 between a first convolution and a linear layer."""

    def __init__(self, clamp):
        super().__init__()
        self.clamp = CLAMPS[clamp]
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.expand, self.project = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 16, 1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.last = nn.Linear(16, 10)

    def forward(self, x):
        x = self.clamp(self.first(x))
        y = self.clamp(self.expand(x))
        y = self.clamp(self.depthwise(y))
        return self.last((x + self.project(y)).mean((2, 3)))


class Reader(CalibrationDataReader):
    def __init__(self, name, batch):
        self.batches = iter([{name: batch.numpy()}])

    def get_next(self):
        return next(self.batches, None)


def optimized(source, target):
    """What ONNX Runtime makes of a file for this processor."""
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(target), 3
    ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return onnx.load(target).graph


def convolutions(graph):
    """For each int8 convolution the types of its activations, weights and results, and whether its weights have an offset."""
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type == "QLinearConv":
            x, weight, offset, y = (constants[node.input[place]] for place in (2, 3, 5, 7))
            found.append((str(x.dtype), str(weight.dtype), bool(offset.any()), str(y.dtype), len(node.input) > 8))
    return Counter(found)


@pytest.mark.parametrize("clamp", CLAMPS)
def test_the_kernels_are_those_of_onnx_runtimes_own_quantizer(clamp, tmp_path):
    torch.manual_seed(0)
    model, batch = InvertedResidual(clamp).eval(), 8 * torch.randn(4, 3, 16, 16)
    ours = quantize_static(model, (batch,), [(batch,)], target="onnxruntime").module
    (tmp_path / "float.onnx").write_bytes(to_onnx(model, (batch,))[0])
    name = ort.InferenceSession(tmp_path / "float.onnx").get_inputs()[0].name
    their_static(
        tmp_path / "float.onnx", tmp_path / "theirs.onnx", Reader(name, batch), quant_format=QuantFormat.QDQ,
        per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    ours = optimized(to_onnx(ours, (batch,), turn_weights=True)[0], tmp_path / "ours-optimized.onnx")
    theirs = optimized(str(tmp_path / "theirs.onnx"), tmp_path / "theirs-optimized.onnx")
    # u8 activations, s8 weights without an offset: what the packed and the depthwise kernels of every x86 take
    assert convolutions(ours) == convolutions(theirs) == {("uint8", "int8", False, "uint8", True): 4}
    kernels = [Counter(node.op_type for node in graph.node) for graph in (ours, theirs)]
    for kernel in ("QLinearConv", "QLinearAdd", "QGemm"):
        assert kernels[0][kernel] == kernels[1][kernel] > 0
    # no kernel gives floats to the next
    for kernel in ("QuantizeLinear", "DequantizeLinear", "Clip", "Relu"):
        assert kernels[0][kernel] <= kernels[1][kernel]
