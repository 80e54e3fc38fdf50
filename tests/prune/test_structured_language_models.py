"""Width pruning of causal language models: by part, in uniform widths, and by importance on text."""

import pytest
import torch
import transformers
from torch import nn

from optkit.core.errors import UserError
from optkit.metrics.language import token_losses
from optkit.models import language_model
from optkit.models.pretrained import save_pretrained
from optkit.prune import prune_depth, prune_structured
from optkit.prune.cut.verify import few_tokens
from optkit.prune.options import NEED_DATA
from tests.prune import zoo

SIZES = {
    "hidden_size": 72, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 12, "head_dim": 8,
    "num_key_value_heads": 4, "vocab_size": 50, "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS = {
    "llama": {"model_type": "llama", **SIZES, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", **SIZES},
    "gemma3": {
        "model_type": "gemma3_text", **SIZES, "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "gpt2": {"model_type": "gpt2", "n_embd": 48, "n_head": 4, "n_layer": 3, "vocab_size": 50},
}  # fmt: skip
TOKENS = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(0))


def made(name):
    torch.manual_seed(0)
    return zoo.randomize(language_model(config=CONFIGS[name])).eval()


def kept(pruned):
    """Of each kind of layer, how much each layer keeps."""
    found = {}
    for layer in pruned.plan.layers:
        kind = layer["name"].translate(str.maketrans("", "", "0123456789"))
        found.setdefault(kind, []).append((layer["kept"], layer["units"]))
    return found


@pytest.mark.parametrize(
    ("part", "name"), [("heads", "self_attn.q_proj"), ("feed_forward", "mlp.gate_proj"), ("residual", "embed_tokens")]
)
def test_only_the_parts_that_are_asked_for_are_cut(part, name):
    model = made("llama")
    pruned = prune_structured(model, (TOKENS,), amount=0.15, parts=[part])
    assert {layer["name"].split(".")[-2] for layer in pruned.plan.layers} == {name.split(".")[-1]}
    zoo.assert_exact(model, pruned, (TOKENS,))


@pytest.mark.parametrize("name", list(CONFIGS))
def test_uniform_widths_are_what_from_pretrained_loads_after_depth_pruning_too(name, tmp_path):
    model = made(name)
    parts = ["feed_forward"] if name == "gpt2" else ["heads", "feed_forward"]
    pruned = prune_structured(model, (TOKENS,), amount=0.2, budget="macs", uniform=True, parts=parts)
    zoo.assert_exact(model, pruned, (TOKENS,))
    for widths in kept(pruned).values():
        assert len(set(widths)) == 1
    assert any(k < n for widths in kept(pruned).values() for k, n in widths)
    shorter = prune_depth(pruned.module, (TOKENS,), keep=[0, 1]).module
    assert save_pretrained(shorter, (TOKENS,), tmp_path / "hf") is None
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(TOKENS).logits, shorter(TOKENS), atol=1e-4, rtol=1e-3)
    generated = loaded.generate(TOKENS[:1, :4], max_new_tokens=3, do_sample=False)
    assert generated.shape == (1, 7)


def test_a_narrower_residual_stream_is_loaded_where_heads_divide_it(tmp_path):
    model = made("llama")
    pruned = prune_structured(model, (TOKENS,), amount=0.3, parts=["residual"], round_to=12)
    assert save_pretrained(pruned.module, (TOKENS,), tmp_path / "hf") is None
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    assert loaded.config.hidden_size < 72
    with torch.no_grad():
        torch.testing.assert_close(loaded(TOKENS).logits, pruned.module(TOKENS), atol=1e-4, rtol=1e-3)


def test_uniform_widths_are_multiples():
    pruned = prune_structured(made("llama"), (TOKENS,), amount=0.35, budget="macs", uniform=True, round_to=8)
    for name, widths in kept(pruned).items():
        assert {k % 8 for k, _ in widths} == {0} or "q_proj" in name
        assert len(set(widths)) == 1


def test_without_uniform_widths_the_reason_is_given(tmp_path):
    pruned = prune_structured(made("llama"), (TOKENS,), amount=0.3, criterion="random")
    reason = save_pretrained(pruned.module, (TOKENS,), tmp_path / "hf")
    assert reason is not None
    assert "no config of LlamaForCausalLM has" in reason


@pytest.mark.parametrize("criterion", NEED_DATA)
def test_a_criterion_that_reads_text_removes_what_the_loss_does_not_need(criterion):
    """Features that are always zero go, however large the weights that read them."""
    model = made("llama")
    idle = [3, 10, 20, 33, 47, 48, 60, 62]
    with torch.no_grad():
        for layer in model.model.model.layers:
            layer.mlp.up_proj.weight[idle] = 0
            layer.mlp.down_proj.weight[:, idle] = 20.0

    def loss(module, batch):
        return token_losses(module(*batch), *batch).mean()

    pruned = prune_structured(
        model, (TOKENS,), amount=0.03, criterion=criterion, scope="local", parts=["feed_forward"],
        batches=[(TOKENS[:1],), (TOKENS[1:],)], loss_fn=loss,
    )  # fmt: skip
    for layer in range(3):
        left = pruned.plan.indices()[f"model.model.layers.{layer}.mlp.gate_proj.weight"][0].tolist()
        assert 0 < 64 - len(left) <= len(idle)
        assert set(range(64)) - set(left) <= set(idle)
    with torch.no_grad():
        torch.testing.assert_close(loss(pruned.module, (TOKENS,)), loss(model, (TOKENS,)))


def test_a_part_that_is_none_is_refused():
    with pytest.raises(UserError, match="parts"):
        prune_structured(made("llama"), (TOKENS,), amount=0.3, parts=["ears"])


class Fixed(nn.Module):
    """Takes 100 tokens and no fewer."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(9, 4), nn.Parameter(torch.zeros(100, 4))

    def forward(self, ids, mask):
        return self.tokens(ids) * mask[..., None] + self.places


def test_a_cut_is_tried_on_few_tokens_where_the_model_takes_few():
    ids, mask = torch.ones(2, 100, dtype=torch.long), torch.ones(2, 100, dtype=torch.bool)
    anyhow = nn.Embedding(9, 4)
    assert few_tokens(anyhow, (ids,))[0].shape == (2, 64)
    assert few_tokens(anyhow, {"input": ids})["input"].shape == (2, 64)
    for model, inputs in (
        (Fixed(), (ids, mask)),
        (nn.Linear(100, 2), (torch.randn(2, 100),)),
        (anyhow, (ids[:, :64],)),
        (Fixed(), (ids, mask[:, :50])),
    ):
        assert few_tokens(model, inputs) is inputs
