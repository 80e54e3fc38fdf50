import copy
from dataclasses import asdict

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from optkit.core.artifact import save_artifact
from optkit.core.errors import StageError, UserError
from optkit.core.macs import count_macs, macs_by_operator
from optkit.core.variant import Variant
from optkit.engines import Eager, Inductor
from optkit.measure.static import measure_static
from optkit.models import MLP, language_model
from optkit.quantize import WeightOnlyQuantization, quantize_weight_only, replay_weight_only

VARIANT = Variant("v", None, frozenset({"weight_only"}), {})
KERNEL = {8: "aten::_weight_int8pack_mm", 4: "aten::_weight_int4pack_mm_for_cpu"}
SCHEMES = [(8, None), (4, 32), (4, 64)]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MLP([1, 8, 8], 3, [128, 64]).eval()


X = (torch.randn(5, 1, 8, 8),)


def torchao(weight, bits, group_size):
    """The same weights through torchao's own quantization and back."""
    from torchao.quantization import Int8Tensor, MappingType, PerRow
    from torchao.quantization import quant_primitives as ao

    if bits == 8:
        return Int8Tensor.from_hp(weight, granularity=PerRow()).dequantize()
    block = (1, group_size)
    scale, zero = ao._choose_qparams_affine_tinygemm(weight, MappingType.ASYMMETRIC, block, torch.int32, 0, 15, 1e-6)
    q = ao._quantize_affine_tinygemm(weight, block, scale, zero, torch.int32, 0, 15)
    return ao._dequantize_affine_tinygemm(q, block, scale, zero, torch.int32, 0, 15)


@pytest.mark.parametrize(("bits", "group_size"), SCHEMES)
def test_weights_are_as_near_as_torchao_brings_them(model, bits, group_size):
    found = quantize_weight_only(model, bits=bits, group_size=group_size)
    assert found.layers
    for path in found.layers:
        weight = model.get_submodule(path).weight.detach()
        ours = (found.module.get_submodule(path).float_weight() - weight).abs().mean()
        theirs = (torchao(weight, bits, group_size) - weight).abs().mean()
        assert 0 < ours < 1.1 * theirs  # their zero points are no whole numbers


@pytest.mark.parametrize(("bits", "group_size"), SCHEMES)
def test_gptq_keeps_the_output_better(model, bits, group_size):
    mixing = torch.randn(64, 64)
    batches = [((torch.randn(256, 64) @ mixing).view(-1, 1, 8, 8),) for _ in range(3)]
    plain = quantize_weight_only(model, bits=bits, group_size=group_size)
    found = quantize_weight_only(model, bits=bits, group_size=group_size, batches=iter(batches))
    assert found.layers == plain.layers
    first = model.get_submodule(found.layers[0])
    inputs = batches[0][0].flatten(1)
    errors = [
        float(
            (inputs @ (q.module.get_submodule(found.layers[0]).float_weight() - first.weight.detach()).T).square().sum()
        )
        for q in (found, plain)
    ]
    assert errors[0] < 0.6 * errors[1]
    assert not any(m._forward_pre_hooks for m in found.module.modules())


@pytest.mark.parametrize(("bits", "group_size"), SCHEMES)
def test_the_kernel_computes_with_the_weights_that_it_says(model, bits, group_size):
    found = quantize_weight_only(model, bits=bits, group_size=group_size)
    for path in found.layers:
        layer = found.module.get_submodule(path)
        x = torch.randn(7, 2, layer.in_features)
        expected = x @ layer.float_weight().T + layer.bias
        assert (layer(x) - expected).abs().max() < 0.02 * expected.abs().max()
        assert layer(x).dtype == x.dtype


@pytest.mark.parametrize("bits", [8, 4])
def test_both_engines_run_the_kernel_and_no_float_product_in_its_place(model, bits):
    found = quantize_weight_only(model, bits=bits)
    for engine in (Eager(), Inductor(cpp_wrapper=False)):
        assert engine.unsupported(VARIANT.traits) is None
        session = engine.compile(found.module, VARIANT, X)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            answer = session(*X)
        calls = {event.key: event.count for event in profiled.key_averages()}
        products = ("aten::addmm", "aten::mm", "mkl::_mkl_linear", "mkldnn::_linear_pointwise")
        assert calls[KERNEL[bits]] == len(found.layers)
        assert sum(calls.get(name, 0) for name in products) == len(found.left)
        assert session.facts()["int8_share"] == 0
        with torch.no_grad():
            torch.testing.assert_close(answer, found.module(*X), atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize(("bits", "group_size"), SCHEMES)
def test_it_reloads_bit_by_bit_from_a_file_that_is_as_small_as_it_says(model, bits, group_size, tmp_path):
    found = quantize_weight_only(model, bits=bits, group_size=group_size)
    surgery = {"layers": list(found.layers), "bits": bits, "group_size": group_size, "symmetric": bits == 8}
    spec = {"target": "optkit.models.MLP", "params": {"input_shape": [1, 8, 8], "num_classes": 3, "widths": [128, 64]}}
    variant = Variant("v", None, frozenset(), spec, ({"by": "quantize.weight_only/2", "data": surgery},))
    artifact = save_artifact(tmp_path, variant, found.module, X)
    with torch.no_grad():
        assert torch.equal(artifact.module()(*X), found.module(*X))
    weights = sum(p.numel() for p in model.parameters())
    assert artifact.size_bytes < weights * (1.1 if bits == 8 else 0.8) + 4000
    figures = {m.name: m.value for m in measure_static(artifact, artifact.module())}
    assert figures["params"] == weights
    assert count_macs(artifact.module(), X) == count_macs(model, X)


def test_the_model_passed_in_is_not_touched_and_can_be_quantized_again(model):
    before = copy.deepcopy(model.state_dict())
    quantize_weight_only(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(type(m).__name__ == "PackedLinear" for m in model.modules())


def test_four_bits_survive_loading_into_a_layer_that_held_others(model):
    one, two = quantize_weight_only(model, bits=4), quantize_weight_only(MLP([1, 8, 8], 3, [128, 64]), bits=4)
    two.module.load_state_dict(one.module.state_dict())
    with torch.no_grad():
        assert torch.equal(two.module(*X), one.module(*X))


def test_macs_are_counted_in_the_kernels(model):
    found = quantize_weight_only(model)
    by_operator = macs_by_operator(found.module, X)
    assert by_operator["aten._weight_int8pack_mm"] == 5 * (64 * 128 + 128 * 64)
    assert sum(by_operator.values()) == count_macs(model, X)


def test_layers_that_do_not_fit_are_named_with_the_reason():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.good, self.narrow, self.odd = nn.Linear(64, 32), nn.Linear(64, 3), nn.Linear(30, 32)
            self.attention = nn.MultiheadAttention(32, 2)

    found = quantize_weight_only(Odd(), bits=8)
    assert found.layers == ("good",)
    assert {k: v.split(",")[0] for k, v in found.left.items()} == {
        "narrow": "its 3 outputs are too few",
        "odd": "its 30 inputs are no multiple of 16",
        "attention.out_proj": "a NonDynamicallyQuantizableLinear",
    }
    assert quantize_weight_only(Odd(), bits=4).layers == ("good",)
    with pytest.raises(StageError, match="no layer.*group size 64"):
        quantize_weight_only(nn.Linear(32, 32), bits=4)
    with pytest.raises(UserError, match="group_size: groups of 32 do not divide the 30 inputs of odd"):
        quantize_weight_only(Odd(), bits=4, group_size=32)
    assert quantize_weight_only(nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 32)), protect=("1",)).layers == ("0",)


def test_the_stage_says_no_before_any_work(digits):
    with pytest.raises(UserError, match="no linear layer"):
        WeightOnlyQuantization().check(nn.Conv2d(1, 2, 3), digits)
    with pytest.raises(UserError, match="bits"):
        WeightOnlyQuantization(bits=2)
    with pytest.raises(UserError, match="group"):
        WeightOnlyQuantization(bits=4, group_size=1)
    with pytest.raises(UserError, match="bits"):
        quantize_weight_only(nn.Linear(64, 32), bits=2)
    with pytest.raises(UserError, match="gptq reads batches"):
        quantize_weight_only(nn.Linear(64, 32), rounding="gptq")
    with pytest.raises(UserError, match="rounding: activations are scaled in a stack"):
        quantize_weight_only(nn.Sequential(nn.Linear(64, 32)), rounding="awq", batches=[torch.randn(4, 64)])


def test_a_misspelt_layer_is_found_before_any_work(model, digits):
    name = next(path for path, module in model.named_modules() if isinstance(module, nn.Linear))
    message = f"protect: no linear layer matches '{name}x'.*did you mean '{name}'"
    with pytest.raises(UserError, match=message):
        WeightOnlyQuantization(protect=[name, f"{name}x"]).check(model, digits)
    with pytest.raises(UserError, match=message):
        quantize_weight_only(model, protect=(f"{name}x",))


def test_replay_needs_no_weights(model):
    found = quantize_weight_only(model, bits=4, group_size=32)
    fresh = replay_weight_only(MLP([1, 8, 8], 3, [128, 64]).eval(), found.layers, 4, 32, symmetric=False)
    fresh.load_state_dict(found.module.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh(*X), found.module(*X))


# bits of their own for the vocabulary

TIED = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "vocab_size": 50, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_embeddings_and_head_have_bits_of_their_own(tied, rounding):
    from optkit.models import language_model

    torch.manual_seed(0)
    model = language_model(config=TIED | {"tie_word_embeddings": tied})
    tokens = torch.randint(0, 50, (2, 16))
    options = {"rounding": rounding, "batches": None if rounding == "nearest" else [(tokens,)]}
    found = quantize_weight_only(model, bits=4, embeddings=True, head=True, vocabulary_bits=8, **options)
    of = {
        path: (layer.bits, layer.group_size) for path, layer in found.module.named_modules() if hasattr(layer, "bits")
    }
    words = {"model.lm_head", "model.model.embed_tokens"}
    assert {of[path] for path in words} == {(8, None)}
    assert {of[path] for path in of.keys() - words} == {(4, 64)}
    head, given = found.module.get_submodule("model.lm_head"), model.get_submodule("model.lm_head").weight
    steps = 1 if rounding == "nearest" else 3  # GPTQ makes up for the errors of other inputs
    assert (head.float_weight() - given).abs().max() <= steps * given.abs().max() / 127
    surgery = {"layers": found.layers, "bits": 4, "group_size": 64, "symmetric": False, "embeddings": found.embeddings}
    surgery |= {"tied": found.tied, "others": {path: asdict(scheme) for path, scheme in found.others.items()}}
    again = replay_weight_only(copy.deepcopy(model), **surgery)
    again.load_state_dict(found.module.state_dict())
    assert torch.equal(again(tokens), found.module(tokens))


def test_bits_of_a_vocabulary_that_stays_in_float(model):
    with pytest.raises(UserError, match="vocabulary_bits"):
        quantize_weight_only(model, bits=4, vocabulary_bits=8)
    with pytest.raises(UserError, match="vocabulary_bits"):
        WeightOnlyQuantization(bits=4, head=True, vocabulary_bits=5)


def test_experts_whose_weights_are_stacked_stay_in_float_and_are_named(caplog):
    mixtral = {
        "model_type": "mixtral", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50, "max_position_embeddings": 64,
        "num_local_experts": 4,
    }  # fmt: skip
    found = quantize_weight_only(language_model(config=mixtral))
    (path,) = found.left
    assert path.endswith("layers.0.mlp.experts")
    assert found.left[path] == "its weights are stacked matrices, [4, 192, 64] and [4, 64, 96]"
    assert f"experts stay in float: {path}" in caplog.text
    assert all(p.dtype == torch.float32 for p in found.module.get_submodule(path).parameters())
