"""What the engines that read a file have in common: threads of their own, numpy in and out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optkit.core.errors import StageError
from optkit.core.structure import Structure, Value, build, values


def same_shapes(inputs: Sequence[Tensor], example: Sequence[Tensor]) -> bool:
    """Whether inputs have the shapes that a session was compiled for."""
    return all(x.shape == wanted.shape for x, wanted in zip(inputs, example, strict=True))


def other_shapes(inputs: Sequence[Tensor], example: Sequence[Tensor], reason: str = "") -> StageError:
    """The error for inputs of shapes that a session cannot take."""
    found, wanted = [list(x.shape) for x in inputs], [list(x.shape) for x in example]
    return StageError(f"compiled for inputs {wanted}, called with {found}{reason and f': {reason}'}")


def arrays(inputs: Sequence[Tensor]) -> list[NDArray[Any]]:
    """The tensors' own memory as arrays; only what is not contiguous is copied."""
    if strange := [place for place, x in enumerate(inputs) if x.dtype == torch.bfloat16]:
        message = f"input {strange[0]} is bfloat16, which this engine does not take"
        raise StageError(message, fix="give float32; OpenVINO(precision='bf16') computes in bfloat16")
    return [np.ascontiguousarray(x.detach().numpy()) for x in inputs]


def tensor(output: NDArray[Any]) -> Tensor:
    """An output out of an engine's own memory, which its next call writes again."""
    return torch.from_numpy(np.array(output))


class Outputs:
    """What a session returns, put together of what its engine gives.

    Args:
        structure: of what the module returns.
    """

    def __init__(self, structure: Structure):
        self.structure = structure
        self.dtypes = [value.dtype for value in values(structure)]
        # one tensor on its own, which nothing need be built for
        self.single = isinstance(structure, Value) and not structure.number

    def of_arrays(self, found: Sequence[NDArray[Any]]) -> Any:
        """Of an engine's arrays, copied."""
        return self.of_tensors([tensor(output) for output in found])

    def of_tensors(self, found: Sequence[Tensor]) -> Any:
        """Of tensors, in the module's dtypes."""
        if self.single:
            return found[0].to(self.dtypes[0])
        given = (x.to(dtype) for x, dtype in zip(found, self.dtypes, strict=True))
        return build(self.structure, given)
