import copy

import pytest
import torch
from torch import nn

from optkit import engines
from optkit.core.engine import made_for
from optkit.core.errors import StageError, UserError
from optkit.core.variant import Variant
from optkit.engines import Eager, Inductor, ONNXRuntime
from optkit.measure.static import measure_macs, measure_static
from optkit.models import huggingface
from optkit.quantize import quantize_dynamic, quantize_static, replay_dynamic
from optkit.quantize.dynamic import describe_dynamic
from tests.quantize.test_static import PreActivation

VARIANT = Variant("v", None, frozenset({"int8"}), {})
SMALL = {
    "model_type": "bert", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 128,
}  # fmt: skip


def tokens(batch, length):
    ids = torch.randint(1, 50, (batch, length))
    mask = torch.ones_like(ids)
    mask[-1, length // 2 :] = 0
    return ids, mask


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return huggingface(config=SMALL, num_classes=3, vocab_size=50, pad_token_id=0, max_length=32).eval()


@pytest.fixture(scope="module")
def quantized(model):
    return quantize_dynamic(model, tokens(2, 16))


def fake_quantized(linear, x):
    """What dynamic int8 computes, written out: one scale and zero point for all of x, a scale for each output."""
    low, high = min(x.min().item(), 0), max(x.max().item(), 0)
    scale = (high - low) / 255
    zero = round(-low / scale)
    x = ((x / scale).round() + zero).clamp(0, 255).sub(zero) * scale
    step = linear.weight.abs().amax(1, keepdim=True) / 127.5
    return nn.functional.linear(x, (linear.weight / step).round().clamp(-128, 127) * step, linear.bias)


def test_a_linear_layer_computes_what_the_formula_says():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(32, 16)).eval(), torch.randn(8, 32)
    found = quantize_dynamic(model, (torch.randn(2, 32),), reduce_range=False).module
    with torch.no_grad():
        torch.testing.assert_close(found(x), fake_quantized(model[0], x), atol=2e-2, rtol=0)
        assert (found(x) - model(x)).abs().max() > 1e-4


def test_the_scale_is_that_of_the_batch_at_hand():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(32, 16)).eval(), torch.randn(8, 32)
    found = quantize_dynamic(model, (torch.randn(2, 32),), reduce_range=False).module
    with torch.no_grad():
        torch.testing.assert_close(found(1000 * x), fake_quantized(model[0], 1000 * x), atol=20, rtol=0)


def test_any_batch_size_and_length_close_to_fp32(model, quantized):
    for batch, length in ((2, 16), (5, 24), (3, 9)):
        x = tokens(batch, length)
        with torch.no_grad():
            expected, actual = model(*x), quantized.module(*x)
        assert 0 < (actual - expected).pow(2).mean() < 0.01 * expected.pow(2).mean()


def test_replay_gives_the_same_answers_bit_by_bit(model, quantized):
    fresh = copy.deepcopy(model)
    for parameter in fresh.parameters():
        nn.init.normal_(parameter)
    again = replay_dynamic(fresh, tokens(2, 16), quantized.reduce_range)
    again.load_state_dict(quantized.module.state_dict())
    x = tokens(5, 16)
    with torch.no_grad():
        assert torch.equal(again(*x), quantized.module(*x))


@pytest.mark.slow
def test_inductor_runs_its_linears_in_int8_and_counts_attention_beside_them(model, quantized):
    x = tokens(4, 16)
    session = Inductor(cpp_wrapper=False).compile(quantized.module, VARIANT, x)
    hidden, length = 64, 16
    linears = length * (4 * hidden**2 + 2 * hidden * 128) + hidden**2 + hidden * 3
    attention = 2 * length**2 * hidden
    assert session.facts()["int8_share"] == pytest.approx(linears / (linears + attention), rel=0.01)
    with torch.no_grad():
        expected = quantized.module(*x)
    assert (session(*x) - expected).pow(2).mean() < 0.01 * expected.pow(2).mean()
    assert "simulation" in Eager().unsupported(VARIANT.traits)


@pytest.mark.slow
def test_onnx_runtime_runs_every_linear_in_int8_at_any_size(model, tmp_path):
    found = quantize_dynamic(model, tokens(2, 16), target="onnxruntime")
    x = tokens(4, 16)
    session = ONNXRuntime().compile(found.module, VARIANT, x)
    hidden, length = 64, 16
    linears = length * (4 * hidden**2 + 2 * hidden * 128) + hidden**2 + hidden * 3
    attention = 2 * length**2 * hidden
    assert session.facts()["int8_share"] == pytest.approx(linears / (linears + attention), rel=0.01)
    with torch.no_grad():
        torch.testing.assert_close(session(*x), found.module(*x), atol=2e-3, rtol=1e-2)
    assert ONNXRuntime().unsupported(made_for("inductor") | {"int8"}) is not None


def test_parameters_and_macs_are_those_of_the_float_model(model, quantized):
    class File:
        size_bytes = 0

    def figures(module):
        static = {m.name: m.value for m in measure_static(File(), module)}
        return static | {"macs": measure_macs(module, tokens(2, 16), {}).value}

    ours, theirs = figures(quantized.module), figures(model)
    assert ours["macs"] == theirs["macs"]
    assert ours["params"] == theirs["params"]


def test_a_model_without_linear_layers_and_an_unknown_target_are_named():
    with pytest.raises(UserError, match="has no linear layer.*quantize/static"):
        quantize_dynamic(nn.Sequential(nn.Conv2d(1, 2, 3)), (torch.randn(2, 1, 8, 8),))
    with pytest.raises(UserError, match="target"):
        quantize_dynamic(nn.Linear(4, 4), (torch.randn(2, 4),), target="inductr")


def test_batch_norms_whose_layer_others_read_stay_where_they_are():
    torch.manual_seed(0)
    model = PreActivation()
    for norm in (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.2, 2)
    images = torch.randn(16, 1, 8, 8)
    expected = model.eval()(images)
    answers = quantize_dynamic(model, (images,), reduce_range=False).module(images)
    assert (answers - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("shape", [(8, 16), (2, 3, 16)])
def test_linears_with_a_bias_run_in_int8_on_onnx_runtime(shape):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8)).eval(), torch.randn(shape)
    found = quantize_dynamic(model, (x,), target="onnxruntime").module
    session = engines.compile(found, (x,), engine="onnxruntime")
    assert session.facts()["int8_share"] == 1.0
    with torch.no_grad():
        torch.testing.assert_close(session(x), found(x), atol=1e-5, rtol=1e-4)


def test_matrices_that_functions_use_are_quantized_and_other_models_are_named():
    class OfMatrices(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.ParameterList([nn.Parameter(torch.randn(8, 8)) for _ in range(2)])

        def forward(self, x):
            for weight in self.weights:
                x = nn.functional.linear(x, weight).relu()
            return x

    found = quantize_dynamic(OfMatrices().eval(), torch.randn(4, 8))
    assert describe_dynamic(found.module)["quantized_weights"] == 2
    with pytest.raises(UserError, match="computes in float64"):
        quantize_dynamic(nn.Linear(4, 4).double(), torch.randn(2, 4).double())


def test_control_flow_by_data_is_one_line():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(x) if x.sum() > 0 else x

    for quantize in (quantize_dynamic, lambda model, x: quantize_static(model, x, [x])):
        with pytest.raises(StageError, match="torch cannot export this model: ") as found:
            quantize(Branches().eval(), torch.randn(2, 4))
        assert "\n" not in str(found.value)
