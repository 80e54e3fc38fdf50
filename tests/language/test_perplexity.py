"""Perplexity is that of a plain loop over the model, by each protocol."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from optkit.core.errors import UserError
from optkit.core.metric import observed
from optkit.metrics.language import BitsPerByte, NextTokenAccuracy, Perplexity
from optkit.tasks.language.protocol import Protocol
from optkit.tasks.language.windows import TokenizedText, Windows

VOCABULARY = 20


def _windows(name, count=35, ends=None):
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, count).astype(np.int32)
    text = TokenizedText(tokens, np.full(count, 3, np.int32), np.array(ends or [count]))
    return Windows.of(text, Protocol.named(name), 0, "test")


def test_figures_are_those_of_a_plain_loop_over_blocks():
    torch.manual_seed(0)
    blocks = _windows("blocks-8")
    assert len(blocks) == 4
    logits = torch.randn(4, 8, VOCABULARY)
    batch = blocks.__getitems__([0, 1, 2, 3])
    wanted = torch.from_numpy(blocks.text.tokens[:32].astype(np.int64)).view(4, 8)
    losses = torch.stack([F.cross_entropy(logits[n, t], wanted[n, t + 1]) for n in range(4) for t in range(7)]).double()
    right = (logits[:, :-1].argmax(-1) == wanted[:, 1:]).double().mean()
    for metric, expected in [
        (Perplexity(), losses.mean().exp()),
        (BitsPerByte(), losses.sum() / np.log(2) / (28 * 3)),
        (NextTokenAccuracy(), right),
    ]:
        assert metric.value(observed(metric, logits, batch)) == pytest.approx(float(expected), rel=1e-6)


def test_neighbouring_blocks_that_are_alike_make_the_interval_wider():
    random = np.random.default_rng(0)
    losses = np.repeat(3 + 0.3 * random.standard_normal(20), 10) * 7
    table = np.stack([losses, np.full(200, 7.0)], 1)
    widths = [
        np.log(found.high / found.low) for found in map(Perplexity().interval, (table, random.permutation(table)))
    ]
    assert Perplexity().pseudo_values(table).shape == (20,)
    assert widths[0] > 2 * widths[1]
    assert Perplexity().pseudo_values(table[:5]).shape == (5,)


@pytest.mark.parametrize(("length", "stride", "count"), [(8, 4, 35), (8, 3, 29), (8, 7, 8), (2, 1, 9), (8, 4, 32)])
def test_a_sliding_window_scores_each_token_but_the_first_once_with_enough_before_it(length, stride, count):
    windows = _windows(f"sliding-{length}-{stride}", count)
    scored = []
    for start, size, first in zip(windows.starts, windows.lengths, windows.firsts, strict=True):
        assert size == length
        assert first >= (1 if start == 0 else length - stride)
        scored += range(start + first, start + size)
    assert scored == list(range(1, count))


def test_documents_are_windows_of_their_own_cut_and_filled_up():
    windows = _windows("documents-6", 20, ends=[4, 4, 5, 15, 20])
    tokens = torch.from_numpy(windows.text.tokens.astype(np.int64))
    batch = windows.__getitems__([0, 1, 2])
    assert [row[row >= 0].tolist() for row in batch.targets] == [
        x.tolist() for x in (tokens[1:4], tokens[6:11], tokens[16:20])
    ]
    assert batch.inputs[0][0].tolist() == [*tokens[:4].tolist(), 0, 0]
    assert batch.text_bytes.tolist() == [9, 15, 12]


@pytest.mark.parametrize(("name", "full"), [("blocks-2048", None), ("sliding-8", "sliding-8-4"), ("documents-9", None)])
def test_a_protocol_has_one_name_in_records(name, full):
    assert Protocol.named(name).name == (full or name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("block-2048", "no protocol 'block-2048'.*blocks-N, sliding-N, sliding-N-STRIDE or documents-N"),
        ("blocks-8-4", "no protocol"),
        ("blocks-1", "windows of 2 tokens and more"),
        ("sliding-8-8", "moved by fewer than they have"),
    ],
)
def test_other_protocols_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        Protocol.named(name)


def test_a_text_shorter_than_a_block_is_refused():
    with pytest.raises(UserError, match="the test split has 5 tokens, fewer than one block of 8"):
        _windows("blocks-8", 5)
