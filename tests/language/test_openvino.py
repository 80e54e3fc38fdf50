"""Language models on OpenVINO: the cache in the compiled model, and weights of few bits in kernels for integers."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import optkit
from optkit.core.errors import StageError, UserError
from optkit.core.generation import generate
from optkit.core.variant import Variant
from optkit.engines import Eager
from optkit.models import language_model

pytest.importorskip("openvino")
from optkit.engines import OpenVINO

LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 50, "max_position_embeddings": 64,
}  # fmt: skip
VARIANT = Variant("v", None, frozenset({"float"}), {"target": "optkit.models.language_model", "params": {}})
PACKED = Variant("p", None, frozenset({"weight_only"}), {"target": "optkit.models.language_model", "params": {}})
EXAMPLE = (torch.zeros(1, 8, dtype=torch.long),)


class Few(nn.Module):
    """A layer that satisfies `PackedWeights`: weights to the nearest of a few integers, in groups or not."""

    def __init__(self, layer, bits, group_size, symmetric):
        super().__init__()
        self.bits, self.group_size, self.bias = bits, group_size, getattr(layer, "bias", None)
        groups = layer.weight.detach().unflatten(1, (-1, group_size or layer.weight.shape[1]))
        low, high, lowest = groups.amin(2), groups.amax(2), -(2 ** (bits - 1))
        self.scale = groups.abs().amax(2) / -lowest if symmetric else (high - low) / (-2 * lowest - 1)
        self.zero_point = None if symmetric else (lowest - low / self.scale).round().clamp(lowest, -lowest - 1)
        shifted = groups / self.scale[..., None] + (0 if symmetric else self.zero_point[..., None])
        self.weight = shifted.round().clamp(lowest, -lowest - 1).flatten(1).to(torch.int8)

    def integers(self):
        return self.weight

    def scales(self):
        return self.scale

    def zero_points(self):
        return None if self.zero_point is None else self.zero_point.to(torch.int8)

    def float_weight(self):
        groups = self.weight.float().unflatten(1, (self.scale.shape[1], -1))
        shifted = groups if self.zero_point is None else groups - self.zero_point[..., None]
        return (shifted * self.scale[..., None]).flatten(1)

    def forward(self, x):
        weight = self.float_weight()
        return F.linear(x, weight, self.bias) if x.is_floating_point() else F.embedding(x, weight)


def packed(module, bits, group_size, symmetric):
    module = copy.deepcopy(module)
    for path, layer in list(module.named_modules()):
        if isinstance(layer, (nn.Linear, nn.Embedding)):
            module.set_submodule(path, Few(layer, bits, group_size, symmetric))
    return module


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return language_model(config=LLAMA)


@pytest.fixture(scope="module")
def session(module):
    return OpenVINO().compile(module, VARIANT, EXAMPLE)


def agree(module, session):
    tokens = torch.randint(1, 50, (2, 9))
    with torch.no_grad():
        whole = module(tokens)
    torch.testing.assert_close(session(tokens), whole, atol=1e-5, rtol=1e-4)
    found = [session.start(tokens[:, :5])] + [session.step(tokens[:, n]) for n in range(5, 9)]
    torch.testing.assert_close(torch.stack(found, 1), whole[:, 4:], atol=1e-5, rtol=1e-4)
    session.rewind(6)
    torch.testing.assert_close(session.step(tokens[:, 6]), whole[:, 6], atol=1e-5, rtol=1e-4)


def test_the_cache_gives_the_logits_of_the_full_forward_pass(module, session):
    agree(module, session)
    assert session.facts()["weight_precisions"] == {"f32": 8}
    assert session.facts()["cache_precision"] == "fp32"


def test_a_padded_prompt_is_answered_as_by_eager(module, session):
    tokens, mask = torch.randint(1, 50, (2, 5)), torch.ones(2, 5, dtype=torch.long)
    mask[0, :2] = 0
    eager = Eager().compile(module, VARIANT, EXAMPLE)
    # the rows begin a new block of 32 tokens in different steps
    assert torch.equal(generate(session, tokens, 40, mask), generate(eager, tokens, 40, mask))


def test_rotary_embeddings_run_as_one_operation(session):
    nodes = session.compiled.get_runtime_model().get_ops()
    kinds = [node.get_rt_info()["layerType"].astype(str) for node in nodes]
    assert kinds.count("RoPE") == 2  # of queries and of keys


def test_the_cache_in_int8_is_smaller_and_near(module, session):
    small = OpenVINO(cache_precision="int8").compile(module, VARIANT, EXAMPLE)
    tokens = torch.randint(1, 50, (2, 5))
    torch.testing.assert_close(small.start(tokens), session.start(tokens), atol=0.02, rtol=0.0)
    assert session.cache_bytes == 2 * 2 * 2 * 5 * 8 * 4
    # 10 tokens of 2 heads: keys have a scale and a zero point for each channel of 32 tokens, values for each token
    assert small.cache_bytes == 10 * 2 * (8 + 8 * 8 // 32 + 8 + 8)
    assert small.facts()["cache_precision"] == "int8"


def test_a_saved_session_opens_again(module, session, tmp_path):
    session.save(tmp_path)
    again = optkit.load(tmp_path)
    tokens = torch.randint(1, 50, (1, 6))
    assert torch.equal(again(tokens), session(tokens))
    assert torch.equal(generate(again, tokens, 4), generate(session, tokens, 4))
    assert again.facts().keys() == session.facts().keys()


@pytest.mark.parametrize(
    ("bits", "group_size", "symmetric", "kind"),
    [(8, None, True, "i8"), (8, 16, False, "u8"), (4, 16, True, "i4"), (4, 32, False, "u4"), (3, None, True, "i4")],
)
def test_weights_of_few_bits_run_as_integers(module, bits, group_size, symmetric, kind):
    quantized = packed(module, bits, group_size, symmetric)
    session = OpenVINO().compile(quantized, PACKED, EXAMPLE)
    agree(quantized, session)
    assert session.facts()["weight_precisions"] == {kind: 8}
    assert session.facts()["activations"] == "fp32"
    assert all(isinstance(layer, Few) for layer in (quantized.model.lm_head, quantized.model.model.embed_tokens))


def windows_of(config, longest):
    """What the masks of a model's attentions show, in the order of its layers."""
    from optkit.engines.openvino_paged import WINDOWS
    from optkit.engines.openvino_stateful import stateful_model

    model = stateful_model(language_model(config=LLAMA | config).cached(), longest)
    return json.loads(model.get_rt_info(WINDOWS).astype(str))


def test_sliding_windows_are_read_off_the_masks():
    sizes = {"model_type": "qwen2", "num_hidden_layers": 2, "use_sliding_window": True, "max_window_layers": 1}
    assert windows_of(sizes | {"sliding_window": 7}, 64) == [None, 7]
    # a window that no text fills is none
    assert windows_of(sizes | {"sliding_window": 64}, 64) == [None, None]


def test_masks_that_add_to_scores_are_not_taken_for_causal_ones():
    import numpy as np
    import openvino as ov
    from openvino import opset13 as ops

    from optkit.engines.openvino_paged import attention_windows

    def model(values):
        tokens = ops.parameter([1, -1], ov.Type.i64, name="input_ids")
        mask = ops.parameter([1, -1], ov.Type.i64, name="attention_mask")
        past = ops.parameter([1, 1, -1, 4], ov.Type.f32, name="past")
        table, axis = ops.constant(np.ones((2, 4), np.float32)), ops.constant(np.int64(0))
        states = ops.unsqueeze(ops.gather(table, tokens, axis), ops.constant(np.int64(1)))
        keys = ops.concat([past, states], 2)
        allowed = ops.convert(ops.unsqueeze(mask, ops.constant(np.array([1, 2]))), "f32")
        added = ops.multiply(ops.constant(np.float32(values)), ops.subtract(ops.constant(np.float32(1)), allowed))
        return ov.Model([ops.scaled_dot_product_attention(states, keys, keys, added)], [tokens, mask, past])

    # neither is causal: the first adds, the second lets tokens see what comes later
    assert attention_windows(model(-1.0), 8) is None
    assert attention_windows(model(-1e9), 8) is None


def test_rows_grow_beyond_their_blocks(module, session, monkeypatch):
    monkeypatch.setattr("optkit.engines.openvino_generation.SPARE_BLOCKS", 0)
    tokens = torch.randint(1, 50, (3, 60))
    with torch.no_grad():
        whole = module(tokens)
    assert session.facts()["attention"] == "paged"
    small = OpenVINO().compile(module, VARIANT, EXAMPLE)
    found = [small.start(tokens[:, :3])]
    assert small.row_blocks == 1
    found += [small.step(tokens[:, n]) for n in range(3, 60)]
    torch.testing.assert_close(torch.stack(found, 1), whole[:, 2:], atol=1e-5, rtol=1e-4)
    assert small.row_blocks == 2


def test_options_that_do_not_exist():
    with pytest.raises(UserError, match="cache_precision"):
        OpenVINO(cache_precision="int4")
    with pytest.raises(UserError, match="dynamic_quantization_group_size"):
        OpenVINO(dynamic_quantization_group_size=-1)


def test_integer_weights_of_other_models_are_refused():
    with pytest.raises(StageError, match="language models only"):
        OpenVINO().compile(nn.Linear(2, 2), PACKED, (torch.zeros(1, 2),))


def test_openvino_genai_gives_the_same_tokens(session, tmp_path):
    genai = pytest.importorskip("openvino_genai")
    import numpy as np
    import openvino as ov
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from optkit.deploy.openvino_genai import save_genai

    characters = {character: number for number, character in enumerate("<abcdefghijklmnopqrstuvwxyzĠ")}
    made = Tokenizer(models.BPE(characters, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<", pad_token="<")
    save_genai(session.model, tmp_path, {"optkit_variant": "v"}, tokenizer.save_pretrained)
    options = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "INFERENCE_NUM_THREADS": 1}
    pipeline = genai.LLMPipeline(str(tmp_path), "CPU", **options)
    tokens = tokenizer("a cat on a mat", return_tensors="pt")["input_ids"]
    config = genai.GenerationConfig(max_new_tokens=6, ignore_eos=True, do_sample=False)
    given = genai.TokenizedInputs(ov.Tensor(tokens.numpy()), ov.Tensor(np.ones_like(tokens.numpy())))
    expected = generate(session, tokens, 6)[0]
    assert pipeline.generate(given, config).tokens[0] == expected.tolist()
    assert pipeline.generate("a cat on a mat", config, apply_chat_template=False) == tokenizer.decode(expected)
