"""Batches of other sizes than a session's kernels are compiled for: filled up with repeats, or answered in parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from optkit.core.errors import StageError, first_line
from optkit.core.structure import flatten, tensors
from optkit.engines.deployed import other_shapes
from optkit.engines.program import export_failures

Run = Callable[..., Sequence[Tensor]]
# relative errors of examples computed beside others: of other float kernels, and of int8 steps that fall otherwise
SAME, SAME_INT8 = 1e-3, 3e-2


class OtherBatches:
    """Answers for any batch size, out of calls with one.

    That is right only if a model computes each example on its own. The first call with a size computes its answers with
    the module, too, at once and in such calls: where they differ, the size is refused.

    Args:
        module: the model, run as PyTorch runs it.
        example: inputs of the size that there are kernels for.
        int8: whether the model rounds its activations.
    """

    def __init__(self, module: Callable[..., Any], example: tuple[Tensor, ...], int8: bool):
        self.module, self.example = module, example
        self.most = SAME_INT8 if int8 else SAME
        self.known: dict[int, list[bool]] = {}

    def __call__(self, run: Run, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        """The outputs of ``run``, which takes the example's shapes and gives tensors, for inputs of another batch size.

        Raises:
            StageError: inputs that differ in more than their batch size, or a model whose examples depend on each
                other.
        """
        size = self._size(inputs)
        if size not in self.known:
            self.known[size] = self._rows_of(inputs, size)
        return self._answers(run, inputs, size, self.known[size])

    def _size(self, inputs: tuple[Tensor, ...]) -> int:
        alike = all(x.dim() and x.shape[1:] == wanted.shape[1:] for x, wanted in zip(inputs, self.example, strict=True))
        sizes = {len(x) for x in inputs} if alike else set()
        if len(sizes) != 1 or sizes == {0}:
            raise other_shapes(inputs, self.example)
        return sizes.pop()

    def _rows_of(self, inputs: tuple[Tensor, ...], size: int) -> list[bool]:
        """Which outputs have a row for each example; raises StageError unless they are the same in parts and whole."""
        failures: tuple[type[BaseException], ...] = (*export_failures(), AssertionError)
        with torch.no_grad():
            try:
                whole, structure = flatten(self.module(*inputs))
            except failures as error:
                reason = f"the model does not take this size ({first_line(error)})"
                raise other_shapes(inputs, self.example, reason) from error
            part, in_parts = flatten(self.module(*self._parts(inputs, size)[0]))
            alike = structure == in_parts
            rows = [x.dim() > 0 and len(x) == len(self.example[0]) for x in part]
            rows = [row and len(x) == size for row, x in zip(rows, whole, strict=True)] if alike else []
            found = self._answers(lambda *x: tensors(self.module(*x)), inputs, size, rows) if alike else []
        if not alike or not all(map(self._same, found, whole)):
            reason = "what the model returns depends on the batch as a whole, so it is not computed in parts"
            message = other_shapes(inputs, self.example, reason).message
            raise StageError(message, fix="compile the model for this batch size")
        return rows

    def _same(self, found: Tensor, wanted: Tensor) -> bool:
        if found.shape != wanted.shape or found.dtype != wanted.dtype:
            return False
        if not wanted.is_floating_point():
            # labels and places of equal scores may change with the kernels
            return bool((found != wanted).float().mean() <= self.most) if wanted.numel() else True
        finite = wanted.isfinite()
        if not torch.equal(found[~finite], wanted[~finite]) or not bool(found[finite].isfinite().all()):
            return bool(torch.isnan(wanted).any()) and torch.equal(found.isnan(), wanted.isnan())
        difference = torch.linalg.vector_norm((found[finite] - wanted[finite]).double())
        return bool(difference <= self.most * torch.linalg.vector_norm(wanted[finite].double()))

    def _parts(self, inputs: tuple[Tensor, ...], size: int) -> list[tuple[Tensor, ...]]:
        wanted = len(self.example[0])
        filled = [torch.cat([x, x[-1:].expand(-size % wanted, *x.shape[1:])]) for x in inputs]
        return list(zip(*(x.split(wanted) for x in filled), strict=True))

    def _answers(self, run: Run, inputs: tuple[Tensor, ...], size: int, rows: list[bool]) -> list[Tensor]:
        parts = [run(*part) for part in self._parts(inputs, size)]
        if len(parts[0]) != len(rows):
            raise other_shapes(inputs, self.example, "the model returns a number that depends on its inputs")
        together = zip(*parts, strict=True)
        return [torch.cat(list(x))[:size] if row else x[0] for row, x in zip(rows, together, strict=True)]
