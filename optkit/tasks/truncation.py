"""Which tokens of a text, or of a pair of texts, stay when there are too many.

`optkit.export` puts a copy of this file beside a model of pairs of texts: it imports numpy alone. The tokenizers
library cuts in the same way, but it also returns what it cut off, and of a pair each piece of one text with each piece
of the other: two texts of 30,000 words take gigabytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def kept_tokens(encoding: Any, max_length: int, side: str) -> NDArray[np.int64]:
    """The places of the tokens that stay, in order: the ``longest_first`` of the tokenizers library.

    Of two texts the longer one is cut, and once both are equally long both are; of an odd number of tokens the text
    that was longer keeps one more, or the second of two equally long ones. Marks around and between texts stay.

    Args:
        encoding: a ``tokenizers.Encoding`` that is not cut.
        max_length: in tokens, marks included.
        side: from which a text is cut, ``right`` or ``left``.
    """
    if len(encoding.ids) <= max_length:
        return np.arange(len(encoding.ids))
    owners = np.array([-1 if text is None else text for text in encoding.sequence_ids])
    marks = np.flatnonzero(owners < 0)
    texts = [np.flatnonzero(owners == text) for text in range(encoding.n_sequences)]
    kept, room = [marks], max_length - len(marks)
    for done, text in enumerate(sorted(texts, key=len)):
        stay = min(len(text), room // (len(texts) - done))
        kept.append(text[:stay] if side == "right" else text[len(text) - stay :])
        room -= stay
    return np.sort(np.concatenate(kept))
