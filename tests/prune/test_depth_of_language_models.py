"""Depth pruning of causal language models: which blocks go, and generation with a cache afterwards."""

import pytest
import torch

from optkit.core.errors import UserError
from optkit.core.generation import generate
from optkit.core.variant import Variant
from optkit.engines.eager import Eager
from optkit.models import language_model
from optkit.prune import prune_depth
from tests.prune.test_sequential_masks import GEMMA

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 50, "max_position_embeddings": 64,
}  # fmt: skip
LLAMA = {"model_type": "llama", **SIZES}
QWEN = {"model_type": "qwen3", **SIZES, "head_dim": 8}
TOKENS = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(0))


def made(config):
    torch.manual_seed(0)
    return language_model(config=config)


@pytest.mark.parametrize(
    "config", [LLAMA, QWEN, GEMMA, {"model_type": "gpt2", "n_embd": 32, "n_head": 4, "n_layer": 3, "vocab_size": 50}]
)
def test_a_shorter_model_generates_with_its_cache_what_the_full_pass_gives(config):
    model = made(config)
    size = len(dict(model.named_modules())["model.transformer.h" if "n_embd" in config else "model.model.layers"])
    shorter = prune_depth(model, (TOKENS,), keep=[0, size - 1]).module
    session = Eager().compile(shorter, Variant("v", None, frozenset({"float"}), {}), (TOKENS,))
    whole = session(TOKENS)
    found = [session.start(TOKENS[:, :5])] + [session.step(TOKENS[:, n]) for n in range(5, 12)]
    torch.testing.assert_close(torch.stack(found, 1), whole[:, 4:])
    assert len(shorter.cached().nothing_read(1)) == 2 * 2
    assert generate(session, TOKENS[:, :4], 3).shape == (2, 3)


def test_lists_with_an_item_a_layer_are_shortened():
    shorter = prune_depth(made(GEMMA), (TOKENS,), keep=[0, 1]).module
    assert shorter.model.config.num_hidden_layers == 2
    assert shorter.model.config.layer_types == ["sliding_attention", "full_attention"]
    assert [layer.self_attn.layer_idx for layer in shorter.model.model.layers] == [0, 1]


def test_influence_is_one_minus_the_cosine_of_what_a_block_takes_and_gives():
    model = made(LLAMA)
    with torch.no_grad():
        for number, factor in enumerate([1.0, 0.01, 1.0, 0.02]):  # blocks that change little
            for part in (
                model.model.model.layers[number].self_attn.o_proj,
                model.model.model.layers[number].mlp.down_proj,
            ):
                part.weight.mul_(factor)
    made_ = prune_depth(model, (TOKENS,), keep=2, by="influence", batches=[(TOKENS[:1],), (TOKENS[1:],)])
    assert made_.plan.facts["removed"] == ["model.model.layers.1", "model.model.layers.3"]
    taken = []
    for block in model.model.model.layers:
        block.register_forward_hook(lambda _, x, y: taken.append((x[0], y)))
    with torch.no_grad():
        model(TOKENS)
    expected = [float(1 - torch.cosine_similarity(x, y, -1).mean()) for x, y in taken]
    assert list(made_.plan.facts["influence"].values()) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("by", "gone"), [("deepest", [1, 2]), ("position", [1, 2])])
def test_by_position(by, gone):
    plan = prune_depth(made(LLAMA), (TOKENS,), keep=2, by=by).plan
    assert plan.facts["removed"] == [f"model.model.layers.{n}" for n in gone]


def test_random_blocks_follow_the_seed():
    found = {
        tuple(prune_depth(made(LLAMA), (TOKENS,), keep=2, by="random", seed=seed).plan.facts["removed"])
        for seed in (0, 0, 1, 2, 3)
    }
    assert 1 < len(found) < 5


def test_influence_without_data_is_refused():
    with pytest.raises(UserError, match="measured on data"):
        prune_depth(made(LLAMA), (TOKENS,), keep=2, by="influence")
