"""Language modelling: the Task of texts that a causal language model continues."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optkit.core.checks import check_count
from optkit.core.errors import UserError
from optkit.core.paths import FilePath
from optkit.core.task import NO_LABEL, TOKENS, Batch
from optkit.tasks.language.documents import Documents, check_has_text
from optkit.tasks.language.multiple_choice import ChoicesOnly
from optkit.tasks.language.protocol import DOCUMENTS, Protocol, blocks
from optkit.tasks.language.token_task import SPLITS, TokenTask
from optkit.tasks.language.tokenizing import tokenized
from optkit.tasks.language.windows import TokenizedText, Windows
from optkit.tasks.tokens import END, Tokenizer, load_tokenizer, trained_on_documents

if TYPE_CHECKING:
    from torch import Tensor, nn

JOINT = "\n\n"  # between documents


@dataclass(kw_only=True)
class LanguageTask(TokenTask):
    """Texts in train, validation and test, as windows of tokens.

    The documents of a split are joined by two newlines, or, where the tokenizer is learned, by its token that ends a
    text. Train is cut into blocks; validation and test are cut as the protocol says.

    Attributes:
        tokenizer: a hub id, a local folder, or a GGUF file, which must be the model's if the model is pretrained; None
            learns one from the train split.
        vocab_size: of a tokenizer that is learned.
        protocol: how perplexity is taken: see `optkit.tasks.language.protocol.Protocol`.
        train_length: tokens of a block in training and calibration; None: as many as a window of the protocol has.
        choices: a file of questions with choices, on which models are measured as well: see `MultipleChoice`.
    """

    vocab_size: int = 8192
    protocol: str = "blocks-2048"
    train_length: int | None = None
    choices: FilePath | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._protocol = Protocol.named(self.protocol)
        check_count("vocab_size", self.vocab_size, least=512)
        if self.train_length is not None:
            check_count("train_length", self.train_length, 2)
        if self.choices is not None and not Path(self.choices).is_file():
            raise UserError(f"no file {self.choices}", key="choices", value=self.choices, fix="check the path")

    @abstractmethod
    def read(self) -> dict[str, Documents]:
        """The documents of each split. Called once."""

    @cached_property
    def _documents(self) -> dict[str, Documents]:
        found = self.read()
        for name in SPLITS:
            check_has_text(found[name], name)
        return found

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is not None:
            return load_tokenizer(self.tokenizer)
        train = self._documents["train"]
        return trained_on_documents(train.texts, train.key, self.vocab_size)

    @cached_property
    def _texts(self) -> dict[str, TokenizedText]:
        mark = END if self.tokenizer is None else None
        alone = self._protocol.kind == DOCUMENTS
        return {
            name: tokenized(
                self._documents[name],
                self._tokenizer,
                None if alone and name != "train" else mark or JOINT,
                mark,
            )
            for name in SPLITS
        }

    def load(self) -> dict[str, Windows]:
        protocols = {"train": blocks(self.train_length or self.length)}
        return {
            name: Windows.of(text, protocols.get(name, self._protocol), self._tokenizer.padding, name)
            for name, text in self._texts.items()
        }

    def stream(self) -> NDArray[np.int32]:
        return self._texts["train"].tokens

    @property
    def length(self) -> int:
        return self._protocol.length

    @cached_property
    def also(self) -> tuple[ChoicesOnly, ...]:
        """The questions of `choices`."""
        if self.choices is None:
            return ()
        return (ChoicesOnly(Path(self.choices), self._tokenizer, self.length, self.limit),)

    @property
    def output_kind(self) -> str:
        return TOKENS

    @cached_property
    def fingerprint(self) -> str:
        own = super().fingerprint
        if not self.also:
            return own
        return hashlib.sha256(f"{own} {self.also[0].fingerprint}".encode()).hexdigest()[:16]

    def model_defaults(self) -> dict[str, Any]:
        return super().model_defaults() | {"max_length": max(self.length, self.train_length or 0)}

    def facts(self) -> dict[str, Any]:
        scored = {name: self._split(name).num_scored for name in SPLITS}
        joint = END if self.tokenizer is None else JOINT
        found = {
            "protocol": self._protocol.name,
            "train_length": self.train_length or self.length,
            "documents": {name: len(self._documents[name].texts) for name in SPLITS},
            "joined_by": joint,
            "scored_tokens": scored,
        }
        if self.also:
            found["choices"] = self.also[0].facts()
        return super().facts() | found

    def forward(self, module: nn.Module, batch: Batch) -> Tensor:
        return module(*batch.inputs)

    def loss(self, logits: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        from torch.nn import functional as F

        return F.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch.targets[:, 1:].flatten(), ignore_index=NO_LABEL,
            label_smoothing=label_smoothing,
        )  # fmt: skip
