"""What the engines that read a file have in common: one shape, threads of their own, numpy in and out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optkit.core.errors import StageError


def check_shapes(inputs: Sequence[Tensor], example: Sequence[Tensor]) -> None:
    """Raises StageError unless inputs have the shapes that a session was compiled for."""
    if any(x.shape != wanted.shape for x, wanted in zip(inputs, example, strict=True)):
        found, wanted = [list(x.shape) for x in inputs], [list(x.shape) for x in example]
        raise StageError(f"compiled for inputs {wanted}, called with {found}")


def arrays(inputs: Sequence[Tensor]) -> list[NDArray[Any]]:
    """The tensors' own memory as arrays; only what is not contiguous is copied."""
    return [np.ascontiguousarray(x.detach().numpy()) for x in inputs]


def tensor(logits: NDArray[Any]) -> Tensor:
    """Logits out of an engine's own memory, which its next call writes again."""
    return torch.from_numpy(np.array(logits, dtype=np.float32))
