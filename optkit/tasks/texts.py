"""Texts as they were read, tokenized splits, and padded batches of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from optkit.core.task import Batch

if TYPE_CHECKING:
    from torch import Tensor

MULTIPLE = 8


@dataclass(frozen=True)
class Texts:
    """One or two texts an example, and labels ``(N,)``."""

    columns: tuple[Sequence[str], ...]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: NDArray[np.int64]) -> Texts:
        return Texts(tuple([column[i] for i in index] for column in self.columns), self.labels[index])

    def digest(self) -> str:
        """Hash of the texts."""
        return hashlib.sha256(json.dumps([list(column) for column in self.columns]).encode()).hexdigest()


@dataclass(frozen=True)
class TextSplit:
    """Tokenized examples, the tokens of all one after the other, possibly memory maps.

    Attributes:
        tokens: token numbers ``(T,)`` int32.
        kinds: which of two texts each token belongs to ``(T,)`` uint8.
        starts: where the chosen examples begin in `tokens` ``(N,)``.
        lengths: how many tokens each has ``(N,)``.
        truncated: whether its text was longer ``(N,)``.
        labels: ``(N,)``.
    """

    tokens: NDArray[np.int32]
    kinds: NDArray[np.uint8]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: NDArray[np.int64]) -> TextSplit:
        starts, lengths, labels = self.starts[index], self.lengths[index], self.labels[index]
        return TextSplit(self.tokens, self.kinds, starts, lengths, self.truncated[index], labels)

    def digest(self) -> str:
        """Hash of tokens and labels."""
        digest = hashlib.blake2b(str(len(self)).encode(), digest_size=16)
        for start, length in zip(self.starts, self.lengths, strict=True):
            digest.update(self.tokens[start : start + length].tobytes())
        for array in (self.lengths, self.labels):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def hashes(self) -> list[bytes]:
        """The tokens of each example."""
        return [self.tokens[s : s + n].tobytes() for s, n in zip(self.starts, self.lengths, strict=True)]

    def joined(self, other: TextSplit) -> TextSplit:
        """This split, and the other behind it."""
        behind = replace(other, starts=other.starts + len(self.tokens))
        names = [f.name for f in fields(self)]
        return TextSplit(*(np.concatenate([getattr(self, name), getattr(behind, name)]) for name in names))

    @cached_property
    def has_kinds(self) -> bool:
        """Whether any token belongs to a second text."""
        return bool(self.kinds.any())


@dataclass(frozen=True)
class Padding:
    """Makes model inputs of tokenized examples.

    Attributes:
        length: tokens an example; shorter ones are filled up on the right.
        token: what they are filled up with.
        kinds: whether the model is told which text a token belongs to.
        shrink: pad to the longest of the batch only, rounded up to a multiple of 8 (training).
    """

    length: int
    token: int
    kinds: bool
    shrink: bool = False

    def __call__(self, split: TextSplit, index: Sequence[int]) -> tuple[Tensor, ...]:
        """Token numbers, attention mask and, if asked for, kinds: each ``(N, length)`` int64."""
        import torch

        longest = int(split.lengths[index].max())
        width = min(self.length, -(-longest // MULTIPLE) * MULTIPLE) if self.shrink else self.length
        ids = np.full((len(index), width), self.token, dtype=np.int64)
        mask = np.zeros_like(ids)
        kinds = np.zeros_like(ids)
        for row, (start, length) in enumerate(zip(split.starts[index], split.lengths[index], strict=True)):
            ids[row, :length] = split.tokens[start : start + length]
            kinds[row, :length] = split.kinds[start : start + length]
            mask[row, :length] = 1
        arrays = (ids, mask, kinds) if self.kinds else (ids, mask)
        return tuple(torch.from_numpy(array) for array in arrays)


@dataclass(frozen=True)
class TextBatches:
    """Texts of a split, padded, a batch at a time."""

    split: TextSplit
    padding: Padding

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, index: list[int]) -> Batch:
        import torch

        targets = torch.from_numpy(self.split.labels[index])
        return Batch(self.padding(self.split, index), targets, torch.tensor(index))
