"""Sessions with a cache answer as the full forward pass does."""

import pytest
import torch

from optkit.core.errors import StageError, UserError
from optkit.core.generation import generate, greedy, sampled
from optkit.core.variant import Variant
from optkit.engines import Inductor
from optkit.engines.eager import Eager
from optkit.models import language_model
from optkit.quantize import quantize_weight_only

LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 50, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def session():
    torch.manual_seed(0)
    module = language_model(config=LLAMA)
    variant = Variant("v", None, frozenset({"float"}), {})
    return Eager().compile(module, variant, (torch.zeros(1, 8, dtype=torch.long),))


def test_steps_give_the_logits_of_the_full_forward_pass(session):
    tokens = torch.randint(0, 50, (2, 9))
    whole = session(tokens)
    found = [session.start(tokens[:, :5])] + [session.step(tokens[:, n]) for n in range(5, 9)]
    torch.testing.assert_close(torch.stack(found, 1), whole[:, 4:])


def test_after_going_back_the_same_tokens_give_the_same_logits(session):
    tokens = torch.randint(0, 50, (1, 6))
    session.start(tokens[:, :5])
    first = session.step(tokens[:, 5])
    session.step(tokens[:, 0])
    session.rewind(5)
    assert session.cache_bytes == 2 * 2 * 2 * 5 * 8 * 4
    torch.testing.assert_close(session.step(tokens[:, 5]), first)


def test_a_padded_prompt_is_answered_as_alone(session):
    short = torch.randint(0, 50, (1, 3))
    both = torch.cat([torch.cat([torch.zeros(1, 2, dtype=torch.long), short], 1), torch.randint(0, 50, (1, 5))])
    mask = torch.ones_like(both)
    mask[0, :2] = 0
    found = generate(session, both, 4, mask)
    assert torch.equal(found[:1], generate(session, short, 4))


def test_a_text_ends_with_its_end_token(session):
    tokens = torch.randint(0, 50, (1, 4))
    first = int(greedy(session.start(tokens)))
    assert generate(session, tokens, 5, end=first).tolist() == [[first]]


def test_draws_are_among_the_most_likely_and_repeat_under_a_seed():
    logits = torch.tensor([[0.0, 5.0, 4.0, -9.0]]).expand(200, 4)
    drawn = sampled(1, top_k=2)(logits)
    assert set(drawn.tolist()) == {1, 2}
    assert torch.equal(drawn, sampled(1, top_k=2)(logits))
    assert set(sampled(1, top_p=0.5)(logits).tolist()) == {1}


def test_prompts_that_are_padded_on_their_right_are_refused(session):
    tokens, mask = torch.randint(0, 50, (2, 5)), torch.ones(2, 5, dtype=torch.long)
    mask[0, 3:] = 0
    with pytest.raises(UserError, match="mask: prompts are padded on their left"):
        session.start(tokens, mask)
    with pytest.raises(UserError, match=r"mask: a mask of \[2, 4\] for tokens of \[2, 5\]"):
        session.start(tokens, mask[:, :4])


def begin(module, tokens):
    return Eager().compile(module, Variant("v", None, frozenset({"float"}), {}), (tokens,)).start(tokens)


@pytest.mark.parametrize("model_type", ["mamba", "rwkv"])
def test_models_whose_state_is_no_keys_and_values_are_refused(model_type):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 50}
    of_kind = {"mamba": {"state_size": 4}, "rwkv": {"attention_hidden_size": 32, "context_length": 64}}[model_type]
    module = language_model(config={"model_type": model_type} | sizes | of_kind)
    with pytest.raises(StageError, match="keeps a state between tokens that is no keys and values"):
        begin(module, torch.zeros(1, 4, dtype=torch.long))


GPT_NEO = {
    "model_type": "gpt_neo", "hidden_size": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 50, "window_size": 4,
    "max_position_embeddings": 64, "attention_types": [[["global", "local"], 1]],
}  # fmt: skip


def test_local_attention_that_lies_at_the_end_of_the_cache_is_refused_where_caches_have_a_fixed_length():
    module, variant = language_model(config=GPT_NEO), Variant("v", None, frozenset({"float"}), {})
    tokens = torch.randint(0, 50, (2, 9))
    session = Eager().compile(module, variant, (tokens,))
    whole = session(tokens)
    found = [session.start(tokens[:, :5])] + [session.step(tokens[:, n]) for n in range(5, 9)]
    torch.testing.assert_close(torch.stack(found, 1), whole[:, 4:])
    with pytest.raises(StageError, match="the local attention of GPTNeoForCausalLM"):
        module.cached().in_place()


@pytest.mark.parametrize("options", [{}, {"bits": 4, "group_size": 32}, {"embeddings": True, "head": True}])
def test_a_quantized_model_in_bf16_runs(options):
    sizes = {name: value for name, value in LLAMA.items() if name != "model_type"}
    module = language_model(config={"model_type": "qwen2"} | sizes).bfloat16()
    tokens = torch.randint(0, 50, (2, 9))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
        found = quantize_weight_only(module, **options).module(tokens)
        assert (found.float() - module(tokens).float()).norm() < 0.25 * module(tokens).float().norm()


@pytest.mark.slow
def test_a_model_in_bfloat16_generates_on_inductor_with_a_cache_of_its_own_kind():
    torch.manual_seed(0)
    module = language_model(config=LLAMA).to(torch.bfloat16)
    tokens = torch.randint(0, 50, (2, 9))
    session = Inductor().compile(module, Variant("v", None, frozenset({"float"}), {}), (tokens[:, :5],))
    whole = module(tokens)
    found = [session.start(tokens[:, :5])] + [session.step(tokens[:, n]) for n in range(5, 9)]
    torch.testing.assert_close(torch.stack(found, 1), whole[:, 4:], atol=2e-2, rtol=2e-2)
    assert session.facts()["precision"] == "bf16"
    assert (
        session.cache_bytes == 2 * 2 * 2 * 2 * 16 * 8 * 2
    )  # layers, keys and values, rows, heads, places, width, bytes
