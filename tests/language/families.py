"""Small causal language models of each family, and the contract that sessions of them keep."""

import torch

from optkit.core.variant import Variant
from optkit.models import language_model

SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": 96, "max_position_embeddings": 64,
}  # fmt: skip
GROUPED = SIZES | {"num_key_value_heads": 2}
WINDOW = 6  # shorter than the texts
WIDE = GROUPED | {"head_dim": 16}
FAMILIES = {
    "llama": GROUPED,
    "mistral": GROUPED | {"sliding_window": WINDOW},
    "qwen2": GROUPED | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": WIDE,
    "gemma2": WIDE | {"sliding_window": WINDOW},
    "gemma3_text": WIDE | {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": GROUPED | {"sliding_window": WINDOW, "pad_token_id": 0},
    "olmo": GROUPED,
    "granite": GROUPED | {"attention_multiplier": 0.3, "logits_scaling": 2.0},
    "stablelm": GROUPED,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96, "n_positions": 64},
    "gpt_neox": SIZES,
    "opt": {
        "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "vocab_size": 96, "max_position_embeddings": 64,
    },
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 96},
}  # fmt: skip
FLOAT = Variant("v", None, frozenset({"float"}), {})
EXAMPLE = (torch.zeros(1, 8, dtype=torch.long),)


def build(family):
    """A model whose answers depend on all that it reads: weights as transformers draws them give flat logits."""
    torch.manual_seed(0)
    module = language_model(config={"model_type": family} | FAMILIES[family])
    for weight in module.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.2)
    return module


def check_generation(session, module, most=1e-4):
    """Prompts of two lengths, steps, a step back and another prompt: the logits of the module's full forward pass."""
    tokens = torch.randint(1, 96, (2, 13), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0

    def close(found, tokens):
        with torch.inference_mode():
            rows = [row[kept.bool()] for row, kept in zip(tokens, mask[:, : tokens.shape[1]], strict=True)]
            wanted = torch.stack([module(row[None])[0, -1] for row in rows])
        torch.testing.assert_close(found, wanted, atol=most, rtol=most)

    close(session.start(tokens[:, :8], mask[:, :8]), tokens[:, :8])
    for n in range(8, 12):
        close(session.step(tokens[:, n]), tokens[:, : n + 1])
    assert session.cache_bytes > 0
    session.rewind(10)
    other = torch.cat([tokens[:, :10], tokens[:, 12:]], 1)
    close(session.step(tokens[:, 12]), other)
    mask = torch.ones(1, 8, dtype=torch.long)
    close(session.start(tokens[1:, :8]), tokens[1:, :8])
