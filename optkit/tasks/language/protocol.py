"""How a text is cut for perplexity: named protocols, because figures of different protocols do not compare."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optkit.core.errors import UserError

BLOCKS, SLIDING, DOCUMENTS = "blocks", "sliding", "documents"
FORMS = "blocks-N, sliding-N, sliding-N-STRIDE or documents-N, such as blocks-2048"
KEY = "task.protocol"
Places = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class Protocol:
    """Where windows begin in a text, and which of their tokens are scored.

    - ``blocks-N``: the documents joined, cut into blocks of N tokens that do not overlap. The first token of a block is
      not scored. What is left at the end is dropped. ``blocks-2048`` is the protocol of the tables of GPTQ (Frantar et
      al., 2023).
    - ``sliding-N-S``: the documents joined, a window of N tokens moved by S. Every token but the first is scored once,
      with at least N - S tokens before it from the second window on. ``sliding-N`` moves by N / 2.
    - ``documents-N``: each document alone, cut behind N tokens. Its first token is not scored.

    Attributes:
        kind: `BLOCKS`, `SLIDING` or `DOCUMENTS`.
        length: tokens of a window, at most.
        stride: tokens that a sliding window moves by.
    """

    kind: str
    length: int
    stride: int

    @classmethod
    def named(cls, name: str) -> Protocol:
        """The protocol of a name.

        Raises:
            UserError: there is none of that name.
        """
        found = re.fullmatch(r"(blocks|sliding|documents)-(\d+)(?:-(\d+))?", str(name))
        if found is None or (found[3] and found[1] != SLIDING):
            raise UserError(f"no protocol '{name}'", key=KEY, value=name, fix=FORMS)
        kind, length = found[1], int(found[2])
        stride = int(found[3] or max(1, length // 2)) if kind == SLIDING else length
        if length < 2 or not 1 <= stride < length + (kind != SLIDING):
            fix = "windows of 2 tokens and more, moved by fewer than they have"
            raise UserError(f"no protocol '{name}'", key=KEY, value=name, fix=fix)
        return cls(kind, length, stride)

    @property
    def name(self) -> str:
        """In records; the stride is always in it."""
        return f"{self.kind}-{self.length}" + (f"-{self.stride}" if self.kind == SLIDING else "")

    def places(self, count: int, ends: NDArray[np.int64], split: str) -> Places:
        """Where windows start, how many tokens they have, and the first of those that is scored, ``(N,)`` each.

        Args:
            count: tokens of the text.
            ends: where its documents end, ``(documents,)``; used by ``documents-N`` alone.
            split: named in the error.

        Raises:
            UserError: there are fewer tokens than a window has, or no document has two.
        """
        if self.kind == DOCUMENTS:
            lengths = np.minimum(np.diff(ends, prepend=0), self.length)
            kept = lengths > 1
            if not kept.any():
                message = f"no document of the {split} split has two tokens"
                raise UserError(message, key="task", fix="give documents with text")
            starts = np.concatenate([[0], ends[:-1]])
            return starts[kept], lengths[kept], np.ones(int(kept.sum()), np.int64)
        if count < self.length:
            message = f"the {split} split has {count} tokens, fewer than one block of {self.length}"
            fix = f"more text, or shorter blocks: {self.kind}-{max(2, count // 4)}"
            raise UserError(message, key=KEY if split != "train" else "task.train_length", value=self.name, fix=fix)
        starts = np.arange(0, count - self.length + 1, self.stride)
        firsts = np.full(len(starts), 1 if self.kind == BLOCKS else self.length - self.stride)
        firsts[0] = 1
        left = count - int(starts[-1]) - self.length
        if self.kind == SLIDING and left:  # the last window ends with the text
            starts, firsts = np.append(starts, count - self.length), np.append(firsts, self.length - left)
        return starts, np.full(len(starts), self.length), firsts


def blocks(length: int) -> Protocol:
    """``blocks-N``."""
    return Protocol(BLOCKS, length, length)
