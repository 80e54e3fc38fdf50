"""Sessions with a cache answer as the full forward pass does."""

import pytest
import torch

from optkit.core.generation import generate, greedy, sampled
from optkit.core.variant import Variant
from optkit.engines.eager import Eager
from optkit.models import language_model

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
