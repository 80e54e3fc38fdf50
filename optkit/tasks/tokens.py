"""Tokenizers, and texts to tokens, once: the result is kept and memory-mapped afterwards."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optkit.core.cache import kept
from optkit.core.errors import UserError, first_line
from optkit.core.progress import track
from optkit.tasks.texts import Texts, TextSplit

CHUNK = 1000
INPUTS = ["input_ids", "attention_mask", "token_type_ids"]
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


@dataclass(frozen=True)
class Tokenizer:
    """A fast tokenizer of transformers.

    Attributes:
        hf: the tokenizer itself.
        digest: hash of all it does.
    """

    hf: Any
    digest: str

    def __len__(self) -> int:
        return len(self.hf)

    @property
    def padding(self) -> int:
        """The number of the token that fills up."""
        return int(self.hf.pad_token_id)


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a hub id or of a local folder.

    Raises:
        UserError: there is none, or it is not one of the fast ones.
    """
    from transformers import AutoTokenizer

    fix = "check the network, or give a folder with tokenizer.json: task.tokenizer=DIR"
    try:
        hf = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise UserError(f"no tokenizer at '{name}': {reason}", key="task.tokenizer", value=name, fix=fix) from error
    if not hf.is_fast:
        raise UserError(f"'{name}' has no fast tokenizer", key="task.tokenizer", value=name, fix=fix)
    if hf.pad_token is None:
        hf.pad_token = hf.eos_token or hf.sep_token
    if hf.pad_token is None:
        raise UserError(f"the tokenizer of '{name}' has no padding token", key="task.tokenizer", value=name)
    content = hf.backend_tokenizer.to_str() + str(hf.pad_token_id)
    return Tokenizer(hf, hashlib.sha256(content.encode()).hexdigest())


def trained_tokenizer(texts: Texts, vocab_size: int) -> Tokenizer:
    """A tokenizer of byte pairs (Sennrich et al., 2016) learned from texts, lower case; kept once learned.

    Byte pairs and not word pieces: two trainings of the latter number their tokens differently.
    """
    key = hashlib.sha256(f"{texts.digest()} {vocab_size}".encode()).hexdigest()[:24]
    return load_tokenizer(str(kept("tokenizers", key, lambda folder: _train(folder, texts, vocab_size))))


def _train(folder: Path, texts: Texts, vocab_size: int) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.BPE(unk_token=SPECIAL["unk_token"]))
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator((text for column in texts.columns for text in column), trainer)
    marks = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=marks
    )
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=INPUTS, **SPECIAL)
    hf.save_pretrained(str(folder))


def tokenize_once(texts: Texts, tokenizer: Tokenizer, max_length: int, what: str) -> TextSplit:
    """The tokenized split, tokenizing it if it is not kept yet.

    Args:
        texts: of the split.
        tokenizer: puts its own marks around and between texts.
        max_length: in tokens, marks included; longer examples are cut, of two texts the longer one.
        what: for the progress bar.
    """
    key = hashlib.sha256(f"{texts.digest()} {tokenizer.digest} {max_length}".encode()).hexdigest()[:24]
    folder = kept("tokens", key, lambda new: _tokenize_to(new, texts, tokenizer, max_length, what))
    names = ("tokens", "kinds", "lengths", "truncated")
    arrays = {n: np.load(folder / f"{n}.npy", mmap_mode="r", allow_pickle=False) for n in names}
    starts = np.concatenate([[0], np.cumsum(arrays["lengths"])[:-1]]).astype(np.int64)
    return TextSplit(starts=starts, labels=texts.labels, **arrays)


def _tokenize_to(folder: Path, texts: Texts, tokenizer: Tokenizer, max_length: int, what: str) -> None:
    found: list[Any] = []
    chunks = range(0, len(texts), CHUNK)
    for start in track(chunks, f"tokenizing {what}", len(chunks)):
        columns: list[Sequence[str]] = [list(column[start : start + CHUNK]) for column in texts.columns]
        found += tokenizer.hf(*columns, truncation=True, max_length=max_length, padding=False).encodings
    takes_kinds = "token_type_ids" in tokenizer.hf.model_input_names
    kinds = [e.type_ids if takes_kinds else [0] * len(e.ids) for e in found]
    arrays = {
        "tokens": np.concatenate([np.asarray(e.ids, dtype=np.int32) for e in found]),
        "kinds": np.concatenate([np.asarray(k, dtype=np.uint8) for k in kinds]),
        "lengths": np.asarray([len(e.ids) for e in found], dtype=np.int64),
        "truncated": np.asarray([bool(e.overflowing) for e in found]),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
