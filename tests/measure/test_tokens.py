"""Figures of models that generate: agreement, MACs and bytes of a token, and rounds of long requests."""

import time

import numpy as np
import pytest
import torch
from torch import nn

from optkit.core.errors import UserError
from optkit.core.workload import FORWARD, Decode, ForwardPass, Prefill
from optkit.measure import Measure
from optkit.measure.agreement import METRICS
from optkit.measure.cases import Timing, cases_of
from optkit.measure.latency import MIN_ROUNDS, interleaved
from optkit.measure.token_counts import measure_tokens, weight_bytes
from optkit.models import language_model

LLAMA = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 50, "max_position_embeddings": 64,
}  # fmt: skip
HEAD, BLOCK = 16 * 50, 16 * 16 * 2 + 2 * 16 * 8 + 3 * 16 * 32  # q and o, k and v, three of the feed-forward


def test_agreement_is_that_of_the_definitions():
    torch.manual_seed(0)
    ours, theirs = torch.randn(300, 7), torch.randn(300, 7)
    ((same, count),), ((divergence, of_tokens),) = (metric.observe((ours, theirs), None) for metric in METRICS)
    p, q = theirs.double().softmax(-1), ours.double().softmax(-1)
    assert (same, count, of_tokens) == (int((ours.argmax(-1) == theirs.argmax(-1)).sum()), 300, 300)
    assert divergence == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-5)
    assert [metric.observe((theirs, theirs), None).tolist() for metric in METRICS] == [[[300, 300]], [[0, 300]]]
    assert [metric.value(np.array([[2, 5], [1, 1]])) for metric in METRICS] == [0.5, 0.5]


def test_macs_of_a_token_grow_with_the_tokens_before_it():
    module = language_model(config=LLAMA)
    found = measure_tokens(module, torch.zeros(2, 32, dtype=torch.long), [8, 1000])
    macs = {m.conditions["sequence_length"]: m.value for m in found if m.name == "macs"}
    # scores and weighted sums over every token: 2 heads of 8 each
    assert macs == {n: HEAD + BLOCK + 2 * 16 * n for n in (8, 1000)}


class Packed(nn.Module):
    """8 outputs of 4 inputs in 4 bits, in groups of 2."""

    bits, group_size = 4, 2

    def integers(self):
        return torch.zeros(8, 4, dtype=torch.int8)

    def scales(self):
        return torch.ones(8, 2)

    def zero_points(self):
        return None

    def float_weight(self):
        return torch.zeros(8, 4)


def test_weights_count_as_the_engine_holds_and_reads_them():
    module = language_model(config=LLAMA)
    rest = 4 * (BLOCK + HEAD + 3 * 16)  # with three norms
    assert weight_bytes(module, "fp32") == (rest + 4 * HEAD, rest)
    tied = language_model(config=LLAMA | {"tie_word_embeddings": True})
    assert weight_bytes(tied, "bf16") == (rest / 2, rest / 2)
    assert weight_bytes(nn.Sequential(Packed(), nn.Linear(2, 3)), "fp32")[0] == 32 / 2 + 16 * 2 + 4 * 9


def test_a_round_of_long_requests_is_one_call():
    def called(ms):
        def session(x):
            time.sleep(ms / 1e3)
            return x

        return session

    found = interleaved({"long": called(55), "short": called(0)}, (torch.zeros(1),), seconds=0.01, seed=0)
    rounds = len(found["long"].samples)
    assert rounds >= MIN_ROUNDS
    assert (found["long"].samples.shape, found["short"].samples.shape) == ((rounds, 1), (rounds, 5))
    assert np.median(found["long"].samples) >= 55


class _Generator:
    cache_bytes = 0

    def start(self, tokens, mask=None): ...

    def step(self, tokens): ...

    def rewind(self, length): ...


def test_sessions_that_keep_no_cache_are_timed_in_forward_passes():
    sessions = {"cached": _Generator(), "graph": torch.neg}
    timed = [list(Timing(1, w, None).of(sessions)) for w in (Prefill(8), Decode(8), ForwardPass(8), FORWARD)]
    assert timed == [["cached"], ["cached"], ["graph"], ["graph"]]


def test_lengths_of_prompts_are_refused_for_other_tasks(digits):
    with pytest.raises(UserError, match=r"measure.prompt_lengths"):
        cases_of(digits, Measure(prompt_lengths=[8]))
