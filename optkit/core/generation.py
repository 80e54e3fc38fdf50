"""The contract of models that generate tokens, of the sessions that run them, and generation over it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from optkit.core.engine import Served
from optkit.core.errors import UserError

Choose = Callable[[Tensor], Tensor]


class CachedModel(nn.Module, ABC):
    """A causal language model with the keys and values of earlier tokens as inputs and outputs.

    Engines compile it, free in the number of rows, of tokens, of earlier tokens and of places. Keys and values are
    ``(N, heads, earlier, width)``, first the keys and then the values of each layer that attends. Heads and widths may
    differ from layer to layer.
    """

    @abstractmethod
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, places: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        """Logits ``(N, K, V)``, and keys and values of the earlier tokens and of these.

        Args:
            input_ids: the new tokens ``(N, T)``.
            attention_mask: 1 for tokens, 0 for padding, which is on the left; of earlier and new tokens
                ``(N, earlier + T)``.
            position_ids: of the new tokens, padding not counted ``(N, T)``.
            places: which of the new tokens logits are wanted of, ``(K,)``.
            past: keys and values, ``(N, heads, earlier, width)`` each.
        """

    @abstractmethod
    def nothing_read(self, rows: int) -> tuple[Tensor, ...]:
        """The keys and values of no tokens, ``(rows, heads, 0, width)`` each."""

    @abstractmethod
    def in_place(self) -> nn.Module:
        """The same model with keys and values in tensors of a fixed length L, ``(N, heads, L, width)`` each.

        It takes the arguments of `forward`, with the mask of all places of these tensors ``(N, L)`` (0 where nothing is
        written yet), and before the keys and values their slots: where the new tokens' are written, ``(T,)``. It gives
        the logits alone.
        """


@runtime_checkable
class Generative(Protocol):
    """A module of token numbers ``(N, T)`` to logits ``(N, T, V)`` that can keep what it has read."""

    def cached(self) -> CachedModel:
        """The same model, weights shared, with a cache."""
        ...


@runtime_checkable
class Generator(Protocol):
    """A session of a `Generative` module: it keeps keys and values of what it has read.

    Calling the session itself on tokens ``(N, T)`` gives the logits of all of them, from the same compiled model, and
    forgets what was read.
    """

    def start(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Forgets everything, reads prompts, and gives the logits ``(N, V)`` of the next token.

        Args:
            tokens: ``(N, T)``.
            mask: 1 for tokens, 0 for padding, which is on the left ``(N, T)``; None for prompts of one length.
        """
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Reads one more token of each row ``(N,)``, and gives the logits ``(N, V)`` of the next."""
        ...

    def rewind(self, length: int) -> None:
        """Forgets all but the first ``length`` tokens of each row, padding included."""
        ...

    @property
    def cache_bytes(self) -> int:
        """What keys and values of what was read take in memory."""
        ...


class CachedSession(Served):
    """The base of sessions with a cache: an engine gives `_forget`, `_advance` and `_keep`, and has start and step.

    Attributes:
        length: how many tokens of each row were read, padding included.
        padding: how many of them are padding ``(N,)``, all on the left.
    """

    length = 0
    padding: Tensor

    @abstractmethod
    def _forget(self, rows: int) -> None:
        """Begins anew with so many rows and nothing read."""

    @abstractmethod
    def _advance(self, tokens: Tensor, mask: Tensor, positions: Tensor, places: Tensor) -> Tensor:
        """Reads tokens behind the ``length`` earlier ones, as `CachedModel` takes them; gives logits ``(N, K, V)``."""

    @abstractmethod
    def _keep(self, length: int) -> None:
        """Forgets all but the first ``length`` tokens."""

    def start(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        self._begin(tokens, mask)
        return self._read(tokens)

    def step(self, tokens: Tensor) -> Tensor:
        return self._read(tokens[:, None])

    def rewind(self, length: int) -> None:
        self._keep(length)
        self.length = length

    def _begin(self, tokens: Tensor, mask: Tensor | None = None) -> None:
        rows = len(tokens)
        if mask is not None:
            _check_mask(mask, tokens)
        self._forget(rows)
        self.length = 0
        self.padding = torch.zeros(rows, dtype=torch.long) if mask is None else (mask == 0).sum(1)

    def _read(self, tokens: Tensor, everything: bool = False) -> Tensor:
        """The logits behind the last of some tokens ``(N, V)``, or of all of them ``(N, T, V)``."""
        new = tokens.shape[1]
        place = torch.arange(self.length + new) - self.padding[:, None]
        mask, positions = (place >= 0).long(), place[:, self.length :].clamp(min=0)
        places = torch.arange(new) if everything else torch.tensor([new - 1])
        logits = self._advance(tokens, mask, positions, places)
        self.length += new
        return logits if everything else logits[:, -1]

    def _all_logits(self, tokens: Tensor) -> Tensor:
        """Logits ``(N, T, V)`` of tokens ``(N, T)`` with nothing before them."""
        self._begin(tokens)
        return self._read(tokens, everything=True)


def _check_mask(mask: Tensor, tokens: Tensor) -> None:
    """Raises UserError for a mask of another shape, or of prompts that are not padded on their left."""
    if mask.shape != tokens.shape:
        message = f"a mask of {list(mask.shape)} for tokens of {list(tokens.shape)}"
        raise UserError(message, key="mask", fix="1 for each token of a prompt, 0 for padding")
    if bool(((mask != 0).diff(dim=1) & (mask[:, 1:] == 0)).any()):
        message = "prompts are padded on their left, and this mask has zeros behind a token"
        raise UserError(message, key="mask", fix='tokenizer(..., padding_side="left")')


def greedy(logits: Tensor) -> Tensor:
    """The most likely token of each row: ``(N, V)`` to ``(N,)``."""
    return logits.argmax(-1)


def sampled(seed: int, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0) -> Choose:
    """Tokens drawn by their probabilities, the same under the same seed.

    Args:
        seed: of the draws.
        temperature: that logits are divided by.
        top_k: draws are among so many of the most likely tokens; None for all.
        top_p: and among the fewest of them whose probabilities add up to this (nucleus sampling, Holtzman et al.,
            2020).
    """
    generator = torch.Generator().manual_seed(seed)

    def choose(logits: Tensor) -> Tensor:
        probabilities, order = (logits.float() / temperature).softmax(-1).sort(dim=-1, descending=True)
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
        if top_k is not None:
            probabilities[:, top_k:] = 0.0
        drawn = torch.multinomial(probabilities, 1, generator=generator)
        return order.gather(1, drawn)[:, 0]

    return choose


def generate(
    session: Generator,
    tokens: Tensor,
    new_tokens: int,
    mask: Tensor | None = None,
    choose: Choose = greedy,
    end: int | None = None,
) -> Tensor:
    """Continues prompts.

    Args:
        session: of a generating model.
        tokens: of the prompts, ``(N, T)``.
        new_tokens: at most so many are generated.
        mask: 0 for padding on the left; None for prompts of one length.
        choose: the next tokens, of logits: `greedy`, or `sampled`.
        end: the token that ends a text; a row is filled up with it behind its end.

    Returns:
        The new tokens ``(N, up to new_tokens)``.
    """
    found: list[Tensor] = []
    ended = torch.zeros(len(tokens), dtype=torch.bool)
    logits = session.start(tokens, mask)
    while True:
        chosen = choose(logits)
        if end is not None:
            chosen = torch.where(ended, end, chosen)
            ended |= chosen == end
        found.append(chosen)
        if len(found) >= new_tokens or bool(ended.all()):
            return torch.stack(found, 1)
        logits = session.step(chosen)
