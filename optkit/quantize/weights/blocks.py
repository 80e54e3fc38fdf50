"""Blocks of a model, run one after the other on calibration data that waits in files: one block's work in memory."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from optkit.core.cache import new_file
from optkit.core.calls import few_tokens
from optkit.models.block_by_block import Answer, Form, answer_forms, in_place_of
from optkit.models.stacks import find_stacks, first_tensor


class _Hidden:
    """Stands in a block's arguments where its hidden state goes."""


HIDDEN = _Hidden()


class Stop(Exception):  # noqa: N818
    """Ends a forward pass that has shown what was wanted of it."""


@dataclass
class Blocks:
    """A model's stack of residual blocks, and what calls them for each calibration batch; for use without gradients.

    Attributes:
        model: the whole model.
        paths: of the blocks, in order; none for a model without one stack of blocks that follow each other.
        folder: for hidden states and inputs.
        batches: how many calibration batches there are.
        given: for each batch and block, its arguments but for the hidden state.
        forms: for each block, what makes an answer of its form of a hidden state.
    """

    model: nn.Module
    paths: list[str]
    folder: Path
    batches: int = 0
    given: list[list[tuple[tuple, dict[str, Any]]]] = field(default_factory=list)
    forms: list[Form] = field(default_factory=list)

    @classmethod
    def of(cls, model: nn.Module, batches: Iterable[tuple[Tensor, ...]], folder: Path, fresh: bool = True) -> Blocks:
        """Finds the blocks and writes the inputs of the first.

        Args:
            model: in eval mode.
            batches: inputs; read once.
            folder: for files.
            fresh: whether hidden states of the first block are written; False where later ones are there already.
        """
        found = iter(batches)
        first = next(found)
        blocks = cls(model, _paths(model, first), folder)
        if blocks.paths:
            blocks.forms = answer_forms(model, blocks.paths, few_tokens(model, first))
        for inputs in chain([first], found):
            write_tensors(blocks._file("inputs", blocks.batches), {str(n): x for n, x in enumerate(inputs)})
            if blocks.paths and not blocks._record(inputs, fresh):
                blocks.paths = []
            blocks.batches += 1
        return blocks

    def block(self, number: int) -> nn.Module:
        """A block."""
        return self.model.get_submodule(self.paths[number])

    def run(self, number: int, batches: int | None = None) -> Iterator[Any]:
        """Runs a block on each calibration batch and gives its answers, None where a hook stopped it."""
        block = self.block(number)
        for batch in range(self.batches if batches is None else min(batches, self.batches)):
            state = read_tensors(self._file(number, batch))["0"]
            args, kwargs = self.given[batch][number]
            args = tuple(state if value is HIDDEN else _own(value) for value in args)
            kwargs = {name: state if value is HIDDEN else _own(value) for name, value in kwargs.items()}
            try:
                yield block(*args, **kwargs)
            except Stop:
                yield None

    def advance(self, number: int) -> None:
        """Writes the inputs of the block behind a block, and removes those of the block."""
        for batch, answer in enumerate(self.run(number)):
            state = first_tensor(answer)
            assert state is not None
            write_tensors(self._file(number + 1, batch), {"0": state})

    def forget(self, number: int) -> None:
        """Removes the inputs of a block."""
        for batch in range(self.batches):
            self._file(number, batch).unlink(missing_ok=True)

    def finish(self) -> None:
        """Runs what is outside of the blocks on each batch, with the last block's answers; the whole model if none."""
        last = len(self.paths)
        for batch in range(self.batches):
            read = read_tensors(self._file("inputs", batch))
            inputs = tuple(read[str(n)] for n in range(len(read)))

            def answer(number: int, args: tuple, kwargs: dict[str, Any], batch: int = batch) -> Tensor:
                state = first_tensor((*args, *kwargs.values()))
                assert state is not None
                return state if number < last - 1 else read_tensors(self._file(last, batch))["0"]

            with self._stubs(answer):
                self.model(*inputs)

    def _record(self, inputs: tuple[Tensor, ...], fresh: bool) -> bool:
        """Notes what blocks are called with, none of them run; False where they do not simply follow each other."""
        given: list[tuple[tuple, dict[str, Any]]] = []
        states: list[Tensor] = []

        def answer(number: int, args: tuple, kwargs: dict[str, Any]) -> Tensor:
            state = first_tensor((*args, *kwargs.values()))
            assert state is not None
            states.append(state)
            before = self.given[-1][number] if self.given else None
            given.append(_known(_without(state, args, kwargs), before))
            return state

        with self._stubs(answer):
            self.model(*inputs)
        if len(given) != len(self.paths) or any(state is not states[0] for state in states):
            return False
        self.given.append(given)
        if fresh:
            write_tensors(self._file(0, self.batches), {"0": states[0]})
        return True

    def _stubs(self, answer: Answer) -> AbstractContextManager[None]:
        """Blocks answer with what a function of their number and arguments gives."""
        return in_place_of([self.block(number) for number in range(len(self.paths))], self.forms, answer)

    def _file(self, of: int | str, batch: int) -> Path:
        return self.folder / f"{of}-{batch:05d}.safetensors"


def _paths(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[str]:
    stacks = find_stacks(model, inputs)
    whole = [stack for stack in stacks if len(stack.blocks) == len(stack.members)]
    return whole[0].block_paths() if len(stacks) == len(whole) == 1 else []


def _without(state: Tensor, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    hidden: Any = HIDDEN
    return (
        tuple(hidden if value is state else value for value in args),
        {name: hidden if value is state else value for name, value in kwargs.items()},
    )


def _known(new: Any, old: Any) -> Any:
    """Arguments, with the tensors of earlier ones where they are equal, so that equal masks take memory once."""
    if isinstance(new, Tensor):
        same = isinstance(old, Tensor) and new.dtype == old.dtype and torch.equal(new, old)
        return old if same else new
    if isinstance(new, dict):
        return {name: _known(value, old.get(name) if isinstance(old, dict) else None) for name, value in new.items()}
    if isinstance(new, tuple):
        pairs = old if isinstance(old, tuple) and len(old) == len(new) else [None] * len(new)
        return tuple(_known(value, other) for value, other in zip(new, pairs, strict=True))
    return new


def _own(value: Any) -> Any:
    """An argument that the block may write to (a cache), as it was; tensors and what is made of them as they are."""
    parts = value if isinstance(value, tuple) else (value,)
    plain = all(part is None or isinstance(part, (Tensor, bool, int, float, str)) for part in parts)
    return value if plain else copy.deepcopy(value)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file."""
    from safetensors.torch import load_file

    return load_file(path)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes tensors into a file, which is there as a whole or not at all."""
    from safetensors.torch import save_file

    with new_file(path, key="workdir") as temporary:
        save_file({name: x.contiguous() for name, x in tensors.items()}, temporary)
