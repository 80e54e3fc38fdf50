"""Questions with choices, from files: read, checked, and tokenized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from optkit.core.errors import UserError
from optkit.core.task import Batch
from optkit.tasks.given import hash_of
from optkit.tasks.language.continuation import Pair, as_input, encode_pair
from optkit.tasks.split_files import read_tables
from optkit.tasks.tokens import Tokenizer

SUFFIXES = (".jsonl", ".json", ".parquet")
COLUMNS = ("context", "choices", "answer")
LEAST = 2
MULTIPLE = 8


@dataclass(frozen=True)
class Question:
    """A context, what may continue it, and which of these is right."""

    context: str
    choices: Sequence[str]
    answer: int


def read_choices(files: Sequence[Path], key: str) -> list[Question]:
    """The questions of files with the columns ``context``, ``choices`` and ``answer``.

    Args:
        files: of JSON lines, a JSON list, or parquet.
        key: the config key that named them.

    Raises:
        UserError: a question is not as it should be; the message names its row.
    """
    if files[0].suffix.lower() not in SUFFIXES:
        raise UserError(f"{files[0]} is none of {', '.join(SUFFIXES)}", key=key, value=str(files[0]))
    (table,) = read_tables({"choices": files}, key.removeprefix("task.")).values()
    option = key.removeprefix("task.")
    columns = [table.column(name, option, files[0].name) for name in COLUMNS]
    found = [Question(*row) for row in zip(*columns, strict=True)]
    if not found:
        raise UserError(f"{files[0]} has no questions", key=key, value=str(files[0]))
    for row, question in enumerate(found):
        if reason := _wrong(question):
            raise UserError(f"{files[0].name}: row {row} {reason}", key=key, fix="correct the file")
    return found


def _wrong(question: Question) -> str | None:
    """What is wrong with a question."""
    choices, answer = question.choices, question.answer
    if not isinstance(question.context, str):
        return f"has a context that is no text: {question.context!r}"
    if not isinstance(choices, list) or len(choices) < LEAST or not all(isinstance(c, str) and c for c in choices):
        return f"has choices that are no list of {LEAST} texts and more: {choices!r}"
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        return f"has the answer {answer!r}, and choices 0 to {len(choices) - 1}"
    return None


@dataclass(frozen=True)
class Choices:
    """Tokenized questions, one an example.

    Attributes:
        questions: as they were read.
        tokenizer: of the model.
        max_length: tokens of a context with a choice; longer contexts are cut on the left.
        width: to which they are filled up; None: the longest of them, in eights.
    """

    questions: Sequence[Question]
    tokenizer: Tokenizer
    max_length: int
    width: int | None = None

    @classmethod
    def read(cls, path: Path, tokenizer: Tokenizer, max_length: int, key: str) -> Choices:
        """The questions of a file; raises UserError as `read_choices`."""
        return cls(read_choices([path], key), tokenizer, max_length)

    @cached_property
    def pairs(self) -> list[list[Pair]]:
        """Context and choice as tokens, of each choice of each question. A space is put between them."""
        hf = self.tokenizer.hf
        return [[encode_pair(hf, q.context, f" {choice}") for choice in q.choices] for q in self.questions]

    @cached_property
    def length(self) -> int:
        """Tokens that each is filled up to."""
        longest = max(len(context) + len(choice) - 1 for pairs in self.pairs for context, choice in pairs)
        return self.width or min(self.max_length, -(-longest // MULTIPLE) * MULTIPLE)

    def __len__(self) -> int:
        return len(self.questions)

    def __getitems__(self, index: list[int]) -> Batch:
        """Inputs are tokens ``(N, C, T)``. Targets are the ``answer`` ``(N,)`` and, of each choice, its ``characters``.

        ``next`` of the targets is the token to score at each place ``(N, C, T)``.
        """
        import torch

        most = max(map(len, self.pairs))
        tokens, targets = as_input(
            [pair for n in index for pair in [*self.pairs[n], *[([], [])] * (most - len(self.pairs[n]))]],
            self.length,
            self.tokenizer.padding,
        )
        shape = (len(index), most, self.length)
        characters = np.ones(shape[:2])
        for row, n in enumerate(index):
            characters[row, : len(self.pairs[n])] = [len(choice) for choice in self.questions[n].choices]
        about = {
            "answer": torch.tensor([self.questions[n].answer for n in index]),
            "characters": torch.from_numpy(characters),
            "next": targets.view(shape),
        }
        return Batch((tokens.view(shape),), about, torch.tensor(index))

    def subset(self, index: NDArray[np.int64]) -> Choices:
        """Some of the questions, filled up to the same length."""
        return replace(self, questions=[self.questions[n] for n in index], width=self.length)

    def digest(self) -> str:
        """Hash of questions and tokenizer."""
        return hash_of([repr(list(self.questions)), self.tokenizer.digest, self.max_length])
