"""Language models as compressed-tensors folders and GGUF files: what transformers reads is what was written."""

import json
import subprocess
import sys

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import nn
from torch.nn import functional as F

import optkit
from optkit.core.errors import UserError
from optkit.deploy.language_formats import SPLIT, _context, _pre_tokenizer
from optkit.models import language_model

pytest.importorskip("gguf")
pytest.importorskip("compressed_tensors")
CONFIG = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 32,
}  # fmt: skip
TOKENS = (torch.arange(12).view(2, 6),)


class Packed(nn.Module):
    """A linear layer with integers for weights, as `optkit.core.packed_weights` has it."""

    def __init__(self, linear, bits, group_size, symmetric):
        super().__init__()
        self.bits, self.group_size, self.bias = bits, group_size, linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        half = 2 ** (bits - 1)
        groups = linear.weight.detach().unflatten(1, (-1, group_size or linear.in_features))
        low, high = groups.amin(2), groups.amax(2)
        self.scale = groups.abs().amax(2) / (half - 1) if symmetric else (high - low) / (2 * half - 1)
        self.zero = None if symmetric else (-half - low / self.scale).round().to(torch.int8)
        point = 0 if symmetric else self.zero[..., None]
        self.whole = (groups / self.scale[..., None] + point).round().clamp(-half, half - 1).flatten(1).to(torch.int8)

    def integers(self):
        return self.whole

    def scales(self):
        return self.scale

    def zero_points(self):
        return self.zero

    def float_weight(self):
        groups = self.whole.float().unflatten(1, (self.scale.shape[1], -1))
        moved = groups if self.zero is None else groups - self.zero[..., None].float()
        return (moved * self.scale[..., None]).flatten(1)

    def forward(self, x):
        return F.linear(x, self.float_weight(), self.bias)


def model_of(config=CONFIG, **packed):
    torch.manual_seed(0)
    model = language_model(config=config)
    if packed:
        for path, inner in list(model.named_modules()):
            if isinstance(inner, nn.Linear) and "lm_head" not in path:
                model.set_submodule(path, Packed(inner, **packed))
    return model


def answers(module):
    with torch.no_grad():
        return module(*TOKENS)


@pytest.mark.parametrize(
    "packed",
    [
        {"bits": 8, "group_size": None, "symmetric": True},
        {"bits": 4, "group_size": 32, "symmetric": True},
    ],
)
def test_integers_are_read_by_transformers(tmp_path, packed):
    from transformers import AutoModelForCausalLM

    model = model_of(**packed)
    done = optkit.export(model, tmp_path / "out", engine="compressed-tensors", example_inputs=TOKENS)
    assert {"model.safetensors", "config.json", "infer.py"} <= set(done.files)
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    torch.testing.assert_close(read(*TOKENS).logits.detach(), answers(model), atol=1e-4, rtol=1e-3)
    assert (tmp_path / "out/model.safetensors").stat().st_size < 4 * sum(p.numel() for p in model_of().parameters())


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_a_gguf_file_in_float_answers_as_the_model(tmp_path, kind):
    from transformers import AutoModelForCausalLM

    model = model_of(CONFIG | {"model_type": kind, "tie_word_embeddings": True})
    optkit.export(model, tmp_path / "out", engine="gguf", example_inputs=TOKENS)
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf", dtype=torch.float32)
    torch.testing.assert_close(read(*TOKENS).logits.detach(), answers(model), atol=1e-5, rtol=1e-4)


def test_q8_0_is_read_in_a_fresh_process_and_is_near(tmp_path):
    model = model_of()
    optkit.export(model, tmp_path / "out", engine="gguf-q8_0", example_inputs=TOKENS)
    code = (
        "import sys, torch; from transformers import AutoModelForCausalLM as A\n"
        "m = A.from_pretrained(sys.argv[1], gguf_file='model.gguf', dtype=torch.float32)\n"
        "print(m(torch.arange(12).view(2, 6)).logits[0, -1, :8].tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    found = torch.tensor(eval(done.stdout.strip().splitlines()[-1]))  # noqa: S307 - numbers that this test printed
    expected = answers(model)[0, -1, :8]
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, atol=0.02 * float(answers(model).abs().max()), rtol=0)


@pytest.mark.parametrize(
    ("model", "engine", "message"),
    [
        (lambda: model_of(), "compressed-tensors", "no layer with weights of few bits"),
        (lambda: model_of(bits=4, group_size=32, symmetric=False), "compressed-tensors", "has zero points"),
        (lambda: model_of(bits=3, group_size=32, symmetric=True), "compressed-tensors", "weights of 3 bits"),
        (lambda: model_of(bits=4, group_size=32, symmetric=True), "gguf", "quantized already"),
        (lambda: nn.Linear(6, 2), "gguf", "no causal language model"),
        (lambda: model_of({"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 96}), "gguf", "this model is gpt2"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_refused(tmp_path, model, engine, message):
    with pytest.raises(UserError, match=message):
        optkit.export(model(), tmp_path / "out", engine=engine, example_inputs=TOKENS)
    assert not (tmp_path / "out").exists()


def split(pattern):
    """As the tokenizers of Qwen and Llama 3 do."""
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(use_regex=False)]
    return pre_tokenizers.Sequence(steps)


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        (pre_tokenizers.ByteLevel(), "gpt-2"),
        (pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel()]), "smollm"),
        (split(SPLIT.replace("NUMBERS", r"\p{N}")), "qwen2"),
        (split(SPLIT.replace("NUMBERS", r"\p{N}{1,3}")), "llama-bpe"),
        (split(r"\w+"), None),
        (pre_tokenizers.ByteLevel(use_regex=False), None),
    ],
)
def test_gguf_says_how_a_tokenizer_splits_text(steps, name):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = steps
    said = json.loads(tokenizer.to_str())["pre_tokenizer"]
    if name is None:
        with pytest.raises(UserError, match="how this tokenizer splits text is not known in GGUF"):
            _pre_tokenizer(said)
    else:
        assert _pre_tokenizer(said) == name


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        ({"sliding_window": 512, "layer_types": None}, 512),
        ({"sliding_window": 512, "layer_types": ["full_attention", "sliding_attention"]}, 512),
        ({"sliding_window": 512, "layer_types": ["full_attention"]}, 4096),
        ({"sliding_window": 8192}, 4096),
        ({"sliding_window": None}, 4096),
        ({}, 4096),
    ],
)
def test_a_gguf_file_says_no_longer_context_than_a_sliding_window(config, longest, caplog):
    assert _context({"max_position_embeddings": 4096} | config) == longest
    assert ("no sliding windows" in caplog.text) == (longest == 512)
