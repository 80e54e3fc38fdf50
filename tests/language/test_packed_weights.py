"""Weights of few bits on ONNX Runtime: its kernels read the integers, and answer as the float weights do."""

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import optkit
from optkit.core.errors import StageError, UserError
from optkit.core.variant import Variant
from optkit.engines import ONNXRuntime
from optkit.engines.matmul_nbits import Blocks
from tests.language.families import EXAMPLE, build, check_generation


class Packed(nn.Module):
    """A linear layer or an embedding whose weights are drawn integers."""

    def __init__(self, shape, bits, group_size, zeros, bias=None):
        super().__init__()
        self.bits, self.group_size, self.bias = bits, group_size, bias
        generator = torch.Generator().manual_seed(0)
        groups = (shape[0], -(-shape[1] // (group_size or shape[1])))
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
        self._integers = torch.randint(low, high, shape, dtype=torch.int8, generator=generator)
        self._scales = (torch.rand(groups, generator=generator) + 0.5) / high / 2
        self._zeros = torch.randint(low, high, groups, dtype=torch.int8, generator=generator) if zeros else None

    def integers(self):
        return self._integers

    def scales(self):
        return self._scales

    def zero_points(self):
        return self._zeros

    def float_weight(self):
        groups = self._integers.float().split(self.group_size or self._integers.shape[1], 1)
        zeros = torch.zeros_like(self._scales) if self._zeros is None else self._zeros.float()
        found = [(x - zeros[:, n : n + 1]) * self._scales[:, n : n + 1] for n, x in enumerate(groups)]
        return torch.cat(found, 1)

    def forward(self, x):
        weight = self.float_weight()
        return F.linear(x, weight, self.bias) if x.is_floating_point() else F.embedding(x, weight)


def packed(bits, group_size, zeros):
    """A model whose linear layers and embedding all have few bits."""
    module = build("qwen2")
    for path, layer in list(module.named_modules()):
        if isinstance(layer, (nn.Linear, nn.Embedding)):
            bias = getattr(layer, "bias", None)
            module.set_submodule(path, Packed(layer.weight.shape, bits, group_size, zeros, bias))
    return module


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "group_size", "zeros"), [(4, 32, True), (4, 16, False), (8, None, False)])
def test_answers_are_those_of_the_float_weights(bits, group_size, zeros, tmp_path):
    module = packed(bits, group_size, zeros)
    variant = Variant("v", None, frozenset({"float"}), {})
    session = ONNXRuntime().compile(module, variant, EXAMPLE)
    check_generation(session, module, 1e-3)
    layers = 2 * 7 + 2
    assert session.facts()["packed_layers"] == {str(bits): layers}
    graph = onnx.load(str(session.file), load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    assert (kinds.count("MatMulNBits"), kinds.count("GatherBlockQuantized")) == (layers - 1, 1)
    assert not [
        x.name
        for x in graph.initializer
        if x.data_type == onnx.TensorProto.FLOAT and "proj" in x.name and len(x.dims) > 1
    ]


@pytest.mark.slow
def test_a_session_opens_again_without_the_module(tmp_path, monkeypatch):
    module = build("llama")
    variant = Variant("v", None, frozenset({"float"}), {})
    ONNXRuntime().compile(module, variant, EXAMPLE).save(tmp_path)
    monkeypatch.setattr(torch.onnx, "export", None)
    check_generation(optkit.load(tmp_path), module)


def test_groups_without_a_kernel_are_refused():
    with pytest.raises(StageError, match="no kernel for weights in groups of 24"):
        Blocks.of(Packed((8, 48), 4, 24, False))


def test_mistakes_in_its_options_are_named():
    with pytest.raises(UserError, match="no activations 'int4'"):
        ONNXRuntime(activations="int4")
