"""Text classification: the Task that every data set of texts or of pairs of texts becomes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from optkit.core.checks import check_count
from optkit.core.errors import UserError
from optkit.core.paths import PathOrId
from optkit.core.task import Batch
from optkit.tasks.classification import SPLITS, UNLABELLED, Classification, write_labels
from optkit.tasks.given import spread
from optkit.tasks.reading import in_batches, order_seed
from optkit.tasks.texts import Padding, TextBatches, Texts, TextSplit
from optkit.tasks.tokens import Tokenizer, load_tokenizer, tokenize, tokenize_once, trained_tokenizer

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(kw_only=True)
class TextClassification(Classification[TextSplit]):
    """Texts, or pairs of texts, with labels.

    Training pads to the longest text of the batch; everything else, the measurement included, to `max_length`.

    Attributes:
        tokenizer: a hub id or a local folder, which must be the model's if the model is pretrained; None learns one
            from the train split.
        vocab_size: of the tokenizer that is learned.
        max_length: tokens an example; longer texts are cut, and the record says how many were.
    """

    tokenizer: PathOrId | None = None
    vocab_size: int = 8192
    max_length: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("vocab_size", self.vocab_size, least=512)
        check_count("max_length", self.max_length, least=8)

    @abstractmethod
    def read(self) -> tuple[dict[str, Texts], list[str]]:
        """The texts of each split and the class names."""

    @cached_property
    def _read(self) -> tuple[dict[str, Texts], list[str]]:
        return self.read()

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is not None:
            return load_tokenizer(self.tokenizer)
        return trained_tokenizer(self._read[0]["train"], self.vocab_size)

    def load(self) -> tuple[dict[str, TextSplit], list[str]]:
        texts, classes = self._read
        for name in SPLITS:
            if not len(texts.get(name, ())):
                raise UserError(f"the data set has no {name} split", key="task", fix="a recipe needs train and test")
        return {
            name: tokenize_once(texts[name], self._tokenizer, self.max_length, f"{name} texts")
            for name in (*SPLITS, UNLABELLED)
            if name in texts
        }, classes

    def seen(self) -> Any:
        return (self.max_length, self._tokenizer.padding, self._kinds)

    @property
    def _kinds(self) -> bool:
        return self._split("train").has_kinds

    def model_defaults(self) -> dict[str, Any]:
        return {
            "num_classes": len(self.classes),
            "inputs": ["input_ids", "attention_mask"] + ["token_type_ids"] * self._kinds,
            "vocab_size": len(self._tokenizer),
            "pad_token_id": self._tokenizer.padding,
            "max_length": self.max_length,
        }

    @property
    def columns(self) -> list[str]:
        """What the texts of an example are called."""
        return ["text", "second_text"][: len(self._read[0]["train"].columns)]

    def preprocessing(self) -> dict[str, Any]:
        """From texts to the model's inputs, and the class names; see `optkit.core.task.Task`."""
        hf = self._tokenizer.hf
        return {
            "kind": "text",
            "tokenizer": "tokenizer.json",
            "columns": self.columns,
            "max_length": self.max_length,
            "truncation": {"strategy": "longest_first", "side": hf.truncation_side},
            "padding": {"to": "max_length", "side": "right", "token": hf.pad_token, "id": self._tokenizer.padding},
            "inputs": self.model_defaults()["inputs"],
            "classes": self.classes,
        }

    def save_tokenizer(self, folder: Path) -> None:
        """Writes the tokenizer's files; ``tokenizer.json`` cuts and pads as the task does."""
        from tokenizers import Tokenizer as Backend

        hf = self._tokenizer.hf
        hf.save_pretrained(str(folder))
        backend = Backend.from_str(hf.backend_tokenizer.to_str())
        backend.enable_truncation(self.max_length, strategy="longest_first", direction=hf.truncation_side)
        padding = {"pad_id": self._tokenizer.padding, "pad_token": hf.pad_token, "length": self.max_length}
        backend.enable_padding(direction="right", **padding)
        backend.save(str(folder / "tokenizer.json"))

    def write_test(self, folder: Path) -> Path:
        """Writes the table of the test texts and their labels, in the order in which they are measured."""
        texts = self._read[0]["test"]
        if self.limit is not None:
            texts = texts.subset(spread(len(texts), self.limit))
        columns = dict(zip(self.columns, texts.columns, strict=True))
        return write_labels(folder, columns, [self.classes[label] for label in texts.labels])

    def conditions(self) -> dict[str, Any]:
        return {"sequence_length": self.max_length}

    def at_length(self, length: int) -> Self:
        """The same task, with the same tokenizer, at another length in tokens."""
        if length == self.max_length:
            return self
        other = replace(self, max_length=length)
        other.__dict__.update(_read=self._read, _tokenizer=self._tokenizer)
        return other

    def encode(self, start: int, count: int) -> tuple[Tensor, ...]:
        texts = self._read[0]["train"]
        places = np.arange(start, start + count) % len(texts)
        found = tokenize(texts.subset(places), self._tokenizer, self.max_length)
        return self._padding()(found, list(range(count)))

    def facts(self) -> dict[str, Any]:
        truncated = {name: round(float(self._split(name).truncated.mean()), 6) for name in SPLITS}
        mean = {name: round(float(self._split(name).lengths.mean()), 2) for name in SPLITS}
        return super().facts() | {
            "tokenizer": self.tokenizer or "learned from train",
            "vocab_size": len(self._tokenizer),
            "truncated_share": truncated,
            "mean_tokens": mean,
        }

    def _padding(self, shrink: bool = False) -> Padding:
        return Padding(self.max_length, self._tokenizer.padding, self._kinds, shrink)

    def batches(
        self, split: str, batch_size: int, *, training: bool = False, seed: int | None = None
    ) -> Iterator[Batch]:
        examples = TextBatches(self._split(split), self._padding(shrink=training))
        return in_batches(examples, batch_size, order_seed(training, seed))

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        split = self._split("train")
        return self._padding()(split, (np.arange(batch_size) % len(split)).tolist())
