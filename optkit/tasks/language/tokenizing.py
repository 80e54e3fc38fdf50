"""Documents to tokens, once and in pieces: the result is kept and memory-mapped afterwards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optkit.core.cache import kept
from optkit.tasks.language.documents import Documents
from optkit.tasks.language.windows import TokenizedText
from optkit.tasks.tokens import Tokenizer

CHUNK = 1 << 20  # characters that are tokenized at once
OVERLAP = 1 << 13  # characters by which neighbouring chunks overlap
ALIKE = 64  # tokens that must agree around the place where one goes over into the other
AT_ONCE = 1000  # documents
TYPES = {"tokens": np.int32, "sizes": np.int32, "ends": np.int64}
Tokens = tuple[NDArray[np.int32], NDArray[np.int32]]  # their numbers, and the bytes that each stands for


def tokenized(documents: Documents, tokenizer: Tokenizer, joint: str | None, mark: str | None = None) -> TokenizedText:
    """The tokens of documents, which are made if they are not kept yet.

    Args:
        documents: of a split.
        tokenizer: adds its own marks as a plain ``tokenizer(text)`` does.
        joint: what is put between documents, which then are one text; None: each is tokenized alone.
        mark: a token that is no text, and stands for no bytes.
    """
    state = f"1 {documents.key} {tokenizer.digest} {joint!r} {mark!r}"
    key = hashlib.sha256(state.encode()).hexdigest()[:24]
    unread = None if mark is None else tokenizer.hf.convert_tokens_to_ids(mark)
    parts = _alone(documents.texts, tokenizer) if joint is None else _joined(documents.texts, tokenizer, joint)
    folder = kept("token_streams", key, lambda new: _write(new, parts, unread))
    arrays = {name: np.memmap(folder / name, kind, "r") for name, kind in TYPES.items()}
    return TokenizedText(**arrays)


def _write(folder: Path, parts: Iterable[tuple[Tokens, bool]], unread: int | None) -> None:
    """Writes parts of a text as they come; whether a document ends with one stands beside it."""
    count = 0
    files = {name: (folder / name).open("wb") for name in TYPES}
    try:
        for (tokens, sizes), ends in parts:
            count += len(tokens)
            tokens.tofile(files["tokens"])
            (sizes if unread is None else np.where(tokens == unread, 0, sizes).astype(np.int32)).tofile(files["sizes"])
            if ends:
                np.array([count]).tofile(files["ends"])
    finally:
        for file in files.values():
            file.close()


def _alone(texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[tuple[Tokens, bool]]:
    for start in range(0, len(texts), AT_ONCE):
        some = list(texts[start : start + AT_ONCE])
        encodings = tokenizer.hf(some, verbose=False).encodings
        yield from ((_tokens(text, encoding)[0], True) for text, encoding in zip(some, encodings, strict=True))


def _joined(texts: Sequence[str], tokenizer: Tokenizer, joint: str) -> Iterator[tuple[Tokens, bool]]:
    before, behind = _marks(tokenizer)
    pieces = chain.from_iterable(([joint] if n else []) + [text] for n, text in enumerate(texts))
    yield before, False
    yield from ((tokens, False) for tokens in in_chunks(pieces, tokenizer))
    yield behind, True


def _marks(tokenizer: Tokenizer) -> tuple[Tokens, Tokens]:
    """What the tokenizer puts before and behind a text."""
    whole, bare = (tokenizer.hf("a", add_special_tokens=marks)["input_ids"] for marks in (True, False))
    start = next(n for n in range(len(whole)) if whole[n : n + len(bare)] == bare)
    return _no_text(whole[:start]), _no_text(whole[start + len(bare) :])


def _no_text(tokens: Sequence[int]) -> Tokens:
    return np.asarray(tokens, np.int32), np.zeros(len(tokens), np.int32)


def in_chunks(
    pieces: Iterable[str], tokenizer: Tokenizer, chunk: int = CHUNK, overlap: int = OVERLAP
) -> Iterator[Tokens]:
    """The tokens of a text as if it were tokenized at once, without the tokenizer's marks.

    Neighbouring chunks overlap. One goes over into the next in the middle of a run of tokens on which both agree. Where
    they do not agree, the chunk grows.

    Args:
        pieces: of the text, one after the other.
        tokenizer: a fast one.
        chunk: characters that are tokenized at once.
        overlap: characters, of a chunk and the next.
    """
    text, done, found = "", 0, _no_text([])
    spans: NDArray[np.int64] = np.zeros((0, 3), np.int64)
    for new in _of_size(pieces, chunk):
        if not text:
            text, (found, spans) = new, _encoded(new, tokenizer)
            continue
        start = max(0, len(text) - overlap)
        following = text[start:] + new
        then, then_spans = _encoded(following, tokenizer)
        cut = _common(spans - np.array([start, start, 0]), then_spans, len(text) - start)
        if cut is None or cut[0] < done:
            text += new
            found, spans = _encoded(text, tokenizer)
            continue
        yield found[0][done : cut[0]], found[1][done : cut[0]]
        text, done, found, spans = following, cut[1], then, then_spans
    yield found[0][done:], found[1][done:]


def _of_size(pieces: Iterable[str], size: int) -> Iterator[str]:
    """The same text in pieces of about this size."""
    gathered: list[str] = []
    length = 0
    for piece in pieces:
        for start in range(0, len(piece), size):
            part = piece[start : start + size]
            gathered.append(part)
            length += len(part)
            if length >= size:
                yield "".join(gathered)
                gathered, length = [], 0
    if length:
        yield "".join(gathered)


def _encoded(text: str, tokenizer: Tokenizer) -> tuple[Tokens, NDArray[np.int64]]:
    """Tokens without the tokenizer's marks, and where each starts and ends in the text and its number, ``(T, 3)``."""
    tokens, spans = _tokens(text, tokenizer.hf(text, add_special_tokens=False, verbose=False).encodings[0])
    return tokens, np.column_stack([spans, tokens[0]])


def _common(one: NDArray[np.int64], other: NDArray[np.int64], overlap: int) -> tuple[int, int] | None:
    """A token, by its places in two lists, in the middle of the longest run on which they agree within an overlap."""
    places = {tuple(row): n for n, row in enumerate(other[: np.searchsorted(other[:, 0], overlap)].tolist())}
    first = int(np.searchsorted(one[:, 0], 0))
    best, length, before = None, 0, -2
    for n, row in enumerate(one[first:].tolist(), first):
        place = places.get(tuple(row), -2)
        length = length + 1 if place == before + 1 else int(place >= 0)
        before = place
        if length >= ALIKE and (best is None or length > best[0]):
            best = length, n, place
    return None if best is None else (best[1] - best[0] // 2, best[2] - best[0] // 2)


def _tokens(text: str, encoding: Any) -> tuple[Tokens, NDArray[np.int64]]:
    """Tokens of an encoded text, and where each starts and ends in it ``(T, 2)``."""
    spans = np.fromiter(chain.from_iterable(encoding.offsets), np.int64).reshape(-1, 2)
    ends = np.maximum.accumulate(spans[:, 1]) if len(spans) else spans[:, 1]
    sizes = np.diff(_bytes_before(text)[ends], prepend=0)
    return (np.asarray(encoding.ids, np.int32), sizes.astype(np.int32)), spans


def _bytes_before(text: str) -> NDArray[np.int64]:
    """How many bytes of UTF-8 lie before each character, and before the end, ``(len(text) + 1,)``."""
    if text.isascii():
        return np.arange(len(text) + 1)
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    sizes = 1 + (points > 0x7F).astype(np.int64) + (points > 0x7FF) + (points > 0xFFFF)
    return np.concatenate([[0], np.cumsum(sizes)])
