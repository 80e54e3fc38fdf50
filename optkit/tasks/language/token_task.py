"""What tasks of token numbers share."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from optkit.core.checks import check_count
from optkit.core.paths import PathOrId
from optkit.core.task import POOL, Batch
from optkit.metrics.registry import resolve_metrics
from optkit.tasks.given import spread
from optkit.tasks.reading import in_batches, order_seed
from optkit.tasks.tokens import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

SPLITS = ("train", "validation", "test")


class Split(Protocol):
    """Examples that a task keeps."""

    def __len__(self) -> int: ...

    def __getitems__(self, index: list[int]) -> Batch: ...

    def subset(self, index: NDArray[np.int64]) -> Self: ...

    def digest(self) -> str: ...


@dataclass(kw_only=True)
class TokenTask(ABC):
    """A task whose models take token numbers ``(N, T)`` and give logits ``(N, T, V)``.

    Attributes:
        tokenizer: a hub id, a local folder, or a GGUF file; it must be the model's if the model is pretrained.
        limit: at most so many examples a split, spread over it; None for all.
        metrics: names, dotted paths, or metrics; the first one budgets.
    """

    tokenizer: PathOrId | None = None
    limit: int | None = None
    metrics: Any = ("perplexity",)

    def __post_init__(self) -> None:
        self.metrics = resolve_metrics(self.metrics)
        if self.limit is not None:
            check_count("limit", self.limit)

    @abstractmethod
    def load(self) -> dict[str, Any]:
        """The examples of each split. Called once."""

    @abstractmethod
    def stream(self) -> NDArray[np.int32]:
        """Tokens of the train split one after the other, ``(T,)``."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Tokens of a test example."""

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        assert self.tokenizer is not None
        return load_tokenizer(self.tokenizer)

    @cached_property
    def _splits(self) -> dict[str, Any]:
        found = self.load()
        if self.limit is None:
            return found
        return {name: split.subset(spread(len(split), self.limit)) for name, split in found.items()}

    def _split(self, name: str) -> Any:
        return self._splits["train" if name == POOL else name]

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name in SPLITS:
            digest.update(self._split(name).digest().encode())
        return digest.hexdigest()[:16]

    @property
    def pool_fingerprint(self) -> str | None:
        return None

    def model_defaults(self) -> dict[str, Any]:
        return {
            "vocab_size": len(self._tokenizer),
            "pad_token_id": self._tokenizer.padding,
            "max_length": self.length,
        }

    def conditions(self) -> dict[str, Any]:
        return {}

    def facts(self) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint,
            "examples": {name: self.size(name) for name in SPLITS},
            "tokenizer": self.tokenizer or "learned from train",
            "vocab_size": len(self._tokenizer),
        }

    def preprocessing(self) -> dict[str, Any]:
        return {}

    def save_tokenizer(self, folder: Path) -> None:
        """Writes the tokenizer's files, which ``from_pretrained`` of transformers reads."""
        self._tokenizer.hf.save_pretrained(str(folder))

    def size(self, split: str) -> int:
        return len(self._split(split))

    def batches(
        self, split: str, batch_size: int, *, training: bool = False, seed: int | None = None
    ) -> Iterator[Batch]:
        return in_batches(self._split(split), batch_size, order_seed(training, seed))

    def mismatch(self, output: Any, count: int) -> str | None:
        shape = list(output.shape) if hasattr(output, "shape") else type(output).__name__
        fits = isinstance(shape, list) and shape[:-1] == [count, self.length] and shape[-1] >= len(self._tokenizer)
        if fits:
            return None
        wanted = f"{len(self._tokenizer)} logits at each of {self.length} tokens"
        return f"it gives {shape} for {count} texts: {wanted} are needed"

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        return (self.prompt(batch_size, self.length),)

    def prompt(self, batch_size: int, length: int) -> Tensor:
        """Tokens of the train split, ``(N, length)``; from its start again where it is too short."""
        import torch

        tokens = self.stream()[: batch_size * length]
        wanted = np.resize(tokens, batch_size * length).reshape(batch_size, length)
        return torch.from_numpy(wanted.astype(np.int64))
