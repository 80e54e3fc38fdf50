"""Weights of few bits in language models: grids, embeddings and heads, GPTQ and AWQ block after block, after a kill."""

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from optkit.core.artifact import save_artifact
from optkit.core.errors import UserError
from optkit.core.generation import generate
from optkit.core.packed_weights import SIMULATED_IN_TORCH, PackedWeights
from optkit.core.stage import Context
from optkit.core.task import TOKENS as TOKENS_OUT
from optkit.core.task import Batch
from optkit.core.variant import Variant
from optkit.engines import Eager
from optkit.models import language_model
from optkit.quantize import DynamicQuantization, StaticQuantization, WeightOnlyQuantization, quantize_weight_only
from optkit.quantize.accuracy.folding import find_sites
from optkit.quantize.weights.blocks import Blocks
from optkit.quantize.weights.grid import Grid
from optkit.quantize.weights.layers import PackedLinear
from optkit.quantize.weights.rounding import PROGRESS
from optkit.quantize.weights.scheme import Scheme

SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 48, "max_position_embeddings": 64,
}  # fmt: skip
FAMILIES = {
    "llama": SIZES,
    "gemma3_text": SIZES | {"head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 48, "n_positions": 64},
}
TOKENS = torch.randint(0, 48, (2, 16), generator=torch.Generator().manual_seed(1))
PATH = "model.model.layers.0."


def made(kind="llama", **more):
    torch.manual_seed(0)
    module = language_model(config={"model_type": kind} | FAMILIES[kind] | more)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter += torch.rand_like(parameter)
    return module


def texts():
    generator = torch.Generator().manual_seed(2)
    return [(torch.randint(0, 48, (4, 32), generator=generator),) for _ in range(4)]


@pytest.mark.parametrize("bits", [8, 4, 3])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [None, 7])
def test_what_is_on_a_grid_comes_back_exactly(bits, symmetric, group_size):
    scheme = Scheme(bits, group_size, symmetric)
    torch.manual_seed(0)
    integers = torch.randint(scheme.lowest, scheme.highest + 1, (6, 21)).float()
    # every group reaches over all integers, so that its range gives the grid back
    for start in range(0, 21, group_size or 21):
        integers[:, start], integers[:, start + 1] = scheme.lowest, scheme.highest
    groups = scheme.groups(21)
    scale = torch.full((6, groups), 0.125)
    zero_point = (
        torch.zeros(6, groups) if symmetric else torch.randint(scheme.lowest, scheme.highest, (6, groups)).float()
    )
    weight = Grid(scheme, scale, zero_point).values(integers)
    layer = PackedLinear(21, 6, False, scheme)
    layer.take(weight, Grid.minmax(weight, scheme))
    assert isinstance(layer, PackedWeights)
    assert torch.equal(layer.integers().float(), integers)
    assert torch.equal(layer.scales(), scale)
    assert symmetric == (layer.zero_points() is None)
    assert torch.equal(layer.float_weight(), weight)
    x = torch.randn(3, 21)
    torch.testing.assert_close(layer(x), x @ weight.T)


def test_a_range_fitted_to_data_is_no_worse_and_ignores_an_outlier_that_no_input_meets():
    torch.manual_seed(0)
    weight, scheme = torch.randn(8, 32), Scheme(4, 16, False)
    weight[:, 3] = 9.0
    x = torch.randn(100, 32)
    x[:, 3] *= 1e-3
    plain, fitted = Grid.minmax(weight, scheme), Grid.fitted(weight, scheme, x.T @ x)
    errors = [((grid.nearest(weight) - weight) @ x.T).square().sum(1) for grid in (plain, fitted)]
    assert errors[1].sum() < 0.7 * errors[0].sum()


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize(("rounding", "share"), [("gptq", 0.9), ("awq", 1.0), ("gptq+awq", 0.9)])
def test_rounding_by_data_keeps_the_logits_better(kind, rounding, share):
    module = made(kind)
    before = {name: x.clone() for name, x in module.state_dict().items()}
    plain = quantize_weight_only(module, bits=3, group_size=16)
    found = quantize_weight_only(module, bits=3, group_size=16, rounding=rounding, batches=texts())
    assert found.layers == plain.layers
    assert len(found.layers) == {"llama": 14, "gemma3_text": 14, "gpt2": 8}[kind]
    with torch.no_grad():
        expected = module(TOKENS)
        errors = [float((x.module(TOKENS) - expected).square().sum()) for x in (found, plain)]
    assert errors[0] < share * errors[1]
    assert found.report.blocks == 2
    assert all(torch.equal(x, before[name]) for name, x in module.state_dict().items())
    assert not any(m._forward_pre_hooks or "forward" in vars(m) for m in found.module.modules())


def test_gptq_rounds_a_layer_by_what_the_rounded_layers_before_it_give():
    module = made()
    found = quantize_weight_only(module, bits=3, group_size=16, rounding="gptq", batches=texts())
    caught = {}
    for name, model in (("float", module), ("rounded", found.module)):
        layer = model.get_submodule(PATH + "mlp.down_proj")
        hook = layer.register_forward_pre_hook(lambda _, args, name=name: caught.setdefault(name, []).append(args[0]))
        with torch.no_grad():
            for batch in texts():
                model(*batch)
        hook.remove()
    x = torch.cat(caught["rounded"]).flatten(0, 1)
    weight = module.get_submodule(PATH + "mlp.down_proj").weight.detach()
    nearest = Grid.minmax(weight, found.scheme).nearest(weight)
    ours = found.module.get_submodule(PATH + "mlp.down_proj").float_weight()
    errors = [float((x @ (w - weight).T).square().sum()) for w in (ours, nearest)]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize(
    ("kind", "producers"),
    [
        ("llama", ["input_layernorm", "self_attn.v_proj", "post_attention_layernorm", "mlp.up_proj"]),
        ("gemma3_text", ["input_layernorm", "self_attn.v_proj", "pre_feedforward_layernorm", "mlp.up_proj"]),
        ("gpt2", ["ln_1", None, "ln_2", None]),  # its queries, keys and values are one layer, and GELU is not linear
    ],
)
def test_scales_are_folded_where_they_leave_the_function_as_it_is(kind, producers):
    module = made(kind)
    path = "model.transformer.h.0" if kind == "gpt2" else "model.model.layers.0"
    block, given = module.get_submodule(path), []
    hook = block.register_forward_pre_hook(lambda _, args, kwargs: given.append((args, kwargs)), with_kwargs=True)
    with torch.no_grad():
        expected = module(TOKENS)
        hook.remove()
        args, kwargs = given[0]
        sites = find_sites(block, lambda: block(*args, **kwargs))
        assert [site.producer for site in sites] == producers
        for site in sites:
            if site.producer:
                site.fold(block, site.shared(torch.rand(len(site.channels)) + 0.5))
        torch.testing.assert_close(module(TOKENS), expected, atol=1e-4, rtol=1e-4)
    weights = made(kind).state_dict()
    assert not torch.equal(block.state_dict()[f"{producers[0]}.weight"], weights[f"{path}.{producers[0]}.weight"])


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("chosen", [{"embeddings": True}, {"head": True}])
def test_tied_weights_stay_tied_and_reload(bits, chosen, tmp_path):
    module = made(tie_word_embeddings=True)
    found = quantize_weight_only(module, bits=bits, group_size="auto" if bits == 8 else 32, **chosen)
    assert found.tied == {"model.lm_head": "model.model.embed_tokens"}
    head, table = (found.module.get_submodule(path) for path in ("model.lm_head", "model.model.embed_tokens"))
    assert isinstance(table, PackedWeights)
    assert head.integers().data_ptr() == table.integers().data_ptr() or bits == 4
    assert torch.equal(head.float_weight(), table.float_weight())
    torch.testing.assert_close(table(TOKENS), table.float_weight()[TOKENS])
    surgery = {
        "layers": list(found.layers), "bits": bits, "group_size": found.scheme.group_size,
        "symmetric": found.scheme.symmetric, "embeddings": list(found.embeddings), "tied": found.tied,
    }  # fmt: skip
    variant = Variant("v", None, frozenset(), module.skeleton(), ({"by": "quantize.weight_only/2", "data": surgery},))
    artifact = save_artifact(tmp_path, variant, found.module, (TOKENS,))
    with torch.no_grad():
        assert torch.equal(artifact.module()(TOKENS), found.module(TOKENS))
    weights = sum(p.numel() for p in module.parameters())
    assert artifact.size_bytes < weights * bits / 8 * 1.3 + 8000


def test_heads_stay_in_float_unless_asked_for():
    module = made()
    assert "model.lm_head" not in quantize_weight_only(module).layers
    assert "model.lm_head" in quantize_weight_only(module, head=True).layers
    found = quantize_weight_only(made(tie_word_embeddings=True))
    assert found.module.model.lm_head.weight is found.module.model.model.embed_tokens.weight
    found = quantize_weight_only(module, bits=3, group_size=16, head=True, rounding="gptq", batches=texts())
    assert isinstance(found.module.model.lm_head, PackedLinear)
    with pytest.raises(UserError, match="embeddings: this Linear has no embedding"):
        quantize_weight_only(nn.Linear(32, 32), embeddings=True)


def test_a_quantized_model_still_generates_with_its_cache():
    module = quantize_weight_only(made(), bits=4, group_size=16, symmetric=True, embeddings=True).module
    session = Eager().compile(module, Variant("v", None, frozenset(), {}), (TOKENS,))
    new = generate(session, TOKENS, 4)
    with torch.no_grad():
        logits = module(torch.cat([TOKENS, new], 1))
    assert torch.equal(logits[:, 15:-1].argmax(-1), new)


def test_a_scheme_without_a_kernel_is_no_claim_of_speed():
    assert WeightOnlyQuantization().adds == {"weight_only"}
    assert WeightOnlyQuantization(bits=4).adds == {"weight_only"}
    assert WeightOnlyQuantization(bits=4, group_size=128, symmetric=True).adds == {"weight_only"}
    for scheme in ({"group_size": 64}, {"symmetric": False}, {"bits": 4, "group_size": None}):
        adds = WeightOnlyQuantization(**scheme).adds
        assert adds == {"weight_only", SIMULATED_IN_TORCH}
        assert "no kernel" in Eager().unsupported(adds)


def test_the_stage_says_what_it_did_and_replays(tmp_path):
    module, stage = made(), WeightOnlyQuantization(bits=4, group_size=32, rounding="gptq+awq", head=True, batches=2)
    task = SimpleNamespace(
        output_kind=TOKENS_OUT, example=lambda n: (TOKENS[:1].repeat(n, 1),), size=lambda split: 8,
        batches=lambda split, batch_size, seed: (Batch(x, x[0], torch.arange(4)) for x in texts()),
    )  # fmt: skip
    ctx = Context(task, None, None, None, seed=0, device=torch.device("cpu"), workdir=tmp_path)
    outcome = stage.apply(module, ctx)
    assert outcome.facts["layers"] == 15
    assert outcome.facts["scaled"] == 8
    assert outcome.facts["calibration_examples"] == 2
    assert outcome.facts["torch_arithmetic"] == "bfloat16"
    assert outcome.facts["macs_share"] > 0.8
    fresh = stage.replay(made(), json.loads(json.dumps(outcome.surgery)), (TOKENS,))
    fresh.load_state_dict(outcome.module.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh(TOKENS), outcome.module(TOKENS))


def test_smoothing_moves_the_range_of_activations_into_weights():
    module = made()
    with torch.no_grad():
        module.get_submodule(PATH + "input_layernorm").weight[3] = 40.0
    found = quantize_weight_only(module, smooth=0.5, batches=texts())
    assert found.report.scaled == 8
    assert found.report.unscaled == 0
    reach, answers = [], []
    for model in (module, found.module):
        layer = model.get_submodule(PATH + "self_attn.q_proj")
        hook = layer.register_forward_pre_hook(lambda _, args: reach.append(args[0].abs().amax((0, 1))))
        with torch.no_grad():
            answers.append(model(TOKENS))
        hook.remove()
    assert reach[0].max() > 20 * reach[0].median()
    assert reach[1].max() < 6 * reach[1].median()
    assert (answers[1] - answers[0]).abs().max() < 0.05 * answers[0].abs().max()
    with pytest.raises(UserError, match="smooth: AWQ scales the same activations"):
        WeightOnlyQuantization(rounding="awq", smooth=0.5)


def test_int8_graphs_are_refused_for_models_that_generate():
    for stage in (DynamicQuantization(), StaticQuantization()):
        with pytest.raises(UserError, match="graph without a cache, and this model generates .*smooth=0.5"):
            stage.check(made(), None)


def quantized(folder):
    return quantize_weight_only(made(), bits=3, group_size=16, rounding="gptq+awq", batches=texts(), workdir=folder)


def same(ours, theirs):
    ours, theirs = ours.module.state_dict(), theirs.module.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(x, theirs[name]) for name, x in ours.items())


def test_after_an_interruption_the_work_goes_on_at_the_block_where_it_stood(tmp_path, monkeypatch):
    advance = Blocks.advance

    def interrupted(self, number):
        if number == 1:
            raise KeyboardInterrupt
        advance(self, number)

    monkeypatch.setattr(Blocks, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantized(tmp_path / "a")
    rounded = []
    monkeypatch.setattr(Blocks, "advance", lambda self, number: (rounded.append(number), advance(self, number)))
    resumed = quantized(tmp_path / "a")
    assert rounded == [1]
    assert resumed.report.resumed_s > 0
    whole = quantized(tmp_path / "b")
    assert rounded == [1, 0, 1]
    assert whole.report.resumed_s == 0
    assert same(resumed, whole)
    with pytest.raises(UserError, match="another quantization stands in it"):
        quantize_weight_only(made(), bits=4, group_size=16, batches=texts(), workdir=tmp_path / "a")


def test_the_work_of_another_model_of_the_same_shapes_is_not_taken_over(tmp_path):
    quantized(tmp_path)
    other = made()
    with torch.no_grad():
        other.get_submodule(PATH + "mlp.up_proj").weight.mul_(2)
    with pytest.raises(UserError, match="workdir: another quantization stands in it"):
        quantize_weight_only(other, bits=3, group_size=16, rounding="gptq+awq", batches=texts(), workdir=tmp_path)


KILLED = """
import os, signal, sys
from tests.quantize.test_language_quantization import Blocks, quantized
advance = Blocks.advance
def killed(self, number):
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    advance(self, number)
Blocks.advance = killed
quantized(sys.argv[1])
"""


@pytest.mark.slow
def test_after_a_kill_the_result_is_the_same_to_the_bit(tmp_path):
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a")], cwd=root, env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert (tmp_path / "a" / PROGRESS).exists()
    assert same(quantized(tmp_path / "a"), quantized(tmp_path / "b"))


def test_the_model_that_goes_in_may_have_been_copied():
    module = copy.deepcopy(made())
    found = quantize_weight_only(module, bits=4, group_size=16)
    again = copy.deepcopy(found.module)
    with torch.no_grad():
        assert torch.equal(again(TOKENS), found.module(TOKENS))
