"""Tokenizers, and texts to tokens, once: the result is kept and memory-mapped afterwards."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optkit.core.cache import kept
from optkit.core.errors import UserError, first_line
from optkit.core.extras import need
from optkit.core.progress import track
from optkit.tasks.texts import Texts, TextSplit
from optkit.tasks.truncation import kept_tokens

CHUNK = 1000  # examples that are tokenized at once
CHARACTERS = 1_000_000  # of them, which bounds memory: a token takes about 100 bytes while it is made
KEPT = ("tokens", "kinds", "lengths", "truncated")  # the arrays of a split
INPUTS = ["input_ids", "attention_mask", "token_type_ids"]
GGUF = ".gguf"
END = "<|endoftext|>"
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
    """The tokenizer of a hub id, of a local folder, or of a GGUF file.

    Raises:
        UserError: there is none, or it is not one of the fast ones.
    """
    from transformers import AutoTokenizer

    source: dict[str, str] = {"pretrained_model_name_or_path": name}
    if name.endswith(GGUF):
        need("language", "GGUF files", "task.tokenizer", ["gguf"])
        if not Path(name).is_file():
            raise UserError(f"no file {name}", key="task.tokenizer", value=name, fix="check the path")
        source = {"pretrained_model_name_or_path": str(Path(name).parent), "gguf_file": Path(name).name}

    fix = "check the network, or give a folder with tokenizer.json: task.tokenizer=DIR"
    try:
        hf = AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
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


def tokenize(texts: Texts, tokenizer: Tokenizer, max_length: int) -> TextSplit:
    """Texts, or pairs of texts, to tokens, with the tokenizer's marks around and between them.

    Args:
        texts: to tokenize, all at once.
        tokenizer: puts its own marks.
        max_length: in tokens, marks included; longer examples are cut, see `optkit.tasks.truncation`.
    """
    hf = tokenizer.hf
    takes_kinds = "token_type_ids" in hf.model_input_names
    tokens, kinds, truncated = [], [], []
    columns = [list(column) for column in texts.columns]
    for encoding in hf(*columns, truncation=False, padding=False, verbose=False).encodings:
        places = kept_tokens(encoding, max_length, hf.truncation_side)
        tokens.append(np.asarray(encoding.ids, dtype=np.int32)[places])
        kinds.append(np.asarray(encoding.type_ids, dtype=np.uint8)[places] * takes_kinds)
        truncated.append(len(encoding.ids) > max_length)
    lengths = np.asarray([len(example) for example in tokens], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    return TextSplit(
        np.concatenate(tokens), np.concatenate(kinds), starts, lengths, np.asarray(truncated), texts.labels
    )


def trained_on_documents(texts: Sequence[str], key: str, vocab_size: int) -> Tokenizer:
    """A tokenizer of byte pairs learned from documents as they are, with a token that ends a document; kept.

    Args:
        texts: the documents.
        key: changes when they do.
        vocab_size: `END` included.
    """
    state = hashlib.sha256(f"documents {key} {vocab_size}".encode()).hexdigest()[:24]
    return load_tokenizer(str(kept("tokenizers", state, lambda folder: _train_cased(folder, texts, vocab_size))))


def _train_cased(folder: Path, texts: Sequence[str], vocab_size: int) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    names = {"bos_token": END, "eos_token": END, "pad_token": END}
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=INPUTS[:2], **names)
    hf.save_pretrained(str(folder))


def tokenize_once(texts: Texts, tokenizer: Tokenizer, max_length: int, what: str) -> TextSplit:
    """The split as `tokenize` gives it, tokenizing it if it is not kept yet.

    Args:
        texts: of the split.
        tokenizer: see `tokenize`.
        max_length: see `tokenize`.
        what: for the progress bar.
    """
    key = hashlib.sha256(f"{texts.digest()} {tokenizer.digest} {max_length}".encode()).hexdigest()[:24]
    folder = kept("tokens", key, lambda new: _tokenize_to(new, texts, tokenizer, max_length, what))
    arrays = {n: np.load(folder / f"{n}.npy", mmap_mode="r", allow_pickle=False) for n in KEPT}
    starts = np.concatenate([[0], np.cumsum(arrays["lengths"])[:-1]]).astype(np.int64)
    return TextSplit(starts=starts, labels=texts.labels, **arrays)


def _tokenize_to(folder: Path, texts: Texts, tokenizer: Tokenizer, max_length: int, what: str) -> None:
    chunks = _chunks(texts)
    parts = [tokenize(texts.subset(c), tokenizer, max_length) for c in track(chunks, f"tokenizing {what}", len(chunks))]
    for name in KEPT:
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.save(folder / f"{name}.npy", joined, allow_pickle=False)


def _chunks(texts: Texts) -> list[NDArray[np.int64]]:
    """The places of the examples that are tokenized at once."""
    starts, characters = [0], 0
    for place, example in enumerate(zip(*texts.columns, strict=True)):
        size = sum(map(len, example))
        if place > starts[-1] and (place - starts[-1] == CHUNK or characters + size > CHARACTERS):
            starts.append(place)
            characters = 0
        characters += size
    return [np.arange(start, end) for start, end in pairwise([*starts, len(texts)])]
