"""Windows into a tokenized text: the examples of a language model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from optkit.core.task import NO_LABEL, Batch
from optkit.tasks.language.protocol import Protocol


@dataclass(frozen=True)
class TokenizedText:
    """A text as tokens, usually memory maps.

    Attributes:
        tokens: their numbers, ``(T,)`` int32.
        sizes: bytes of text that each stands for, ``(T,)`` int32: from the end of the one before it to its own.
        ends: where each document ends, ``(documents,)``; that of the whole where documents are joined.
    """

    tokens: NDArray[np.int32]
    sizes: NDArray[np.int32]
    ends: NDArray[np.int64]


@dataclass(frozen=True)
class Windows:
    """Windows into a text, one an example; shorter ones are filled up on the right.

    Attributes:
        text: what they are of.
        starts: where they begin ``(N,)``.
        lengths: how many tokens they have ``(N,)``.
        firsts: the first token of each that is scored ``(N,)``; those behind it are, too.
        width: to which they are filled up.
        padding: the token that fills up.
    """

    text: TokenizedText
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    firsts: NDArray[np.int64]
    width: int
    padding: int

    @classmethod
    def of(cls, text: TokenizedText, protocol: Protocol, padding: int, split: str) -> Windows:
        """The windows of a protocol; raises UserError for a text that is too short, which names the split."""
        places = protocol.places(len(text.tokens), text.ends, split)
        return cls(text, *places, protocol.length, padding)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitems__(self, index: list[int]) -> Batch:
        """Inputs are tokens ``(N, T)``. Targets are the same, `NO_LABEL` where one is not scored."""
        import torch

        tokens = np.full((len(index), self.width), self.padding, np.int64)
        targets = np.full_like(tokens, NO_LABEL)
        sizes = np.zeros(len(index), np.int64)
        for row, (start, length, first) in enumerate(self._places(index)):
            tokens[row, :length] = self.text.tokens[start : start + length]
            targets[row, first:length] = tokens[row, first:length]
            sizes[row] = self.text.sizes[start + first : start + length].sum(dtype=np.int64)
        found = (torch.from_numpy(tokens),), torch.from_numpy(targets), torch.tensor(index)
        return Batch(*found, text_bytes=torch.from_numpy(sizes))

    def subset(self, index: NDArray[np.int64]) -> Windows:
        return replace(self, starts=self.starts[index], lengths=self.lengths[index], firsts=self.firsts[index])

    def digest(self) -> str:
        """Hash of their tokens and of what is scored."""
        digest = hashlib.blake2b(f"{len(self)} {self.width}".encode(), digest_size=16)
        for start, length, first in self._places(list(range(len(self)))):
            digest.update(np.ascontiguousarray(self.text.tokens[start : start + length]).data)
            digest.update(f"{length} {first}".encode())
        return digest.hexdigest()

    @property
    def num_scored(self) -> int:
        """How many tokens are scored."""
        return int((self.lengths - self.firsts).sum())

    def _places(self, index: list[int]) -> list[tuple[int, int, int]]:
        return list(
            zip(self.starts[index].tolist(), self.lengths[index].tolist(), self.firsts[index].tolist(), strict=True)
        )
