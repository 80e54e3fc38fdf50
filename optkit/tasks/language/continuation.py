"""The log-likelihood of continuations: how they are tokenized, and how logits score them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from optkit.core.task import NO_LABEL

if TYPE_CHECKING:
    from torch import Tensor

Pair = tuple[list[int], list[int]]  # tokens of a context, and of what continues it


def encode_pair(hf: Any, context: str, continuation: str) -> Pair:
    """Tokens of a context and of its continuation, cut apart as EleutherAI's lm-eval does.

    Spaces at the end of a context count to the continuation. Both are tokenized together, and what is longer than the
    context alone is the continuation. An empty context is the token that begins, or else ends, a text.
    """
    if not context:
        first = hf.eos_token_id if hf.bos_token_id is None else hf.bos_token_id
        tokens = hf(continuation, add_special_tokens=False, verbose=False)["input_ids"]
        return ([first], tokens) if tokens[:1] != [first] else (tokens[:1], tokens[1:])
    bare = context.rstrip()
    whole, alone = (hf(text, verbose=False)["input_ids"] for text in (context + continuation, bare))
    return alone, whole[len(alone) :]


def as_input(pairs: Sequence[Pair], width: int, padding: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of pairs, ``(N, width)`` each.

    Each token of a continuation is the target of the place before it. Contexts that are too long are cut on the left.
    """
    import torch

    tokens = np.full((len(pairs), width), padding, np.int64)
    targets = np.full_like(tokens, NO_LABEL)
    for row, (context, continuation) in enumerate(pairs):
        if not continuation:
            continue
        both = (context + continuation)[-width - 1 :]
        scored = min(len(continuation), len(both) - 1)
        tokens[row, : len(both) - 1] = both[:-1]
        targets[row, len(both) - 1 - scored : len(both) - 1] = both[len(both) - scored :]
    return torch.from_numpy(tokens), torch.from_numpy(targets)


def scores(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The log-likelihood of each continuation in nats ``(N,)``, and whether all its tokens are the likeliest ``(N,)``.

    Args:
        logits: ``(N, T, V)``; those at a place are of the next token.
        targets: ``(N, T)``, the next token of each place, -1 where it is not scored.
    """
    import torch

    sums, greedy = [], []
    for of_row, wanted in zip(logits, targets, strict=True):
        places = (wanted != NO_LABEL).nonzero()[:, 0]
        chosen = of_row[places].float().log_softmax(-1)
        sums.append(chosen.gather(1, wanted[places][:, None]).sum())
        greedy.append((chosen.argmax(-1) == wanted[places]).all())
    return torch.stack(sums), torch.stack(greedy)
