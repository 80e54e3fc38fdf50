"""Runs a model block by block: each block sees what the blocks before it now give, and one block's inputs are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from optkit.core.calls import Inputs, call, few_tokens
from optkit.core.errors import UserError
from optkit.core.progress import track
from optkit.core.sharding import pooled
from optkit.models.stacks import find_stacks, first_tensor, replaced

Given = tuple[tuple, dict[str, Any]]  # arguments of a call, HIDDEN in place of the tensor that blocks hand on
Form = Callable[[Tensor], Any]
Answer = Callable[[int, tuple, dict[str, Any]], Tensor]  # of a block's number and arguments: the hidden state behind it
HIDDEN = object()


class _EnoughError(Exception):
    """Ends a forward pass behind the last block that is wanted."""


@dataclass
class Block:
    """A residual block of a model and what it is called with.

    Attributes:
        path: of the block in the model.
        module: the block; it may be changed.
        hidden: what it takes in, ``(N, ...)`` of each batch.
        given: its other arguments, of each batch.
    """

    path: str
    module: nn.Module
    hidden: list[Tensor]
    given: list[Given]

    @torch.no_grad()
    def run(self) -> Iterator[Tensor]:
        """The block as it now is on its inputs, batch by batch."""
        for hidden, (args, kwargs) in zip(self.hidden, self.given, strict=True):
            found = first_tensor(self.module(*replaced(args, HIDDEN, hidden), **replaced(kwargs, HIDDEN, hidden)))
            assert found is not None
            yield found


def block_by_block(model: nn.Module, batches: Sequence[tuple[Tensor, ...]]) -> Iterator[Block]:
    """The residual blocks of a model in the order in which they run.

    A block is yielded with its inputs; when the next one is asked for, the block is run as it then is, and its outputs
    are the next block's inputs. Where another module stands between two blocks, the model is run anew up to the second.

    Args:
        model: in evaluation mode.
        batches: the model's inputs, by position.

    Raises:
        UserError: no batch, or a model without residual blocks (see `find_stacks`).
    """
    if not batches:
        raise UserError("no batch was given", key="batches", fix="give at least one")
    few = few_tokens(model, batches[0])
    paths = [path for stack in find_stacks(model, few) for path in stack.block_paths()]
    if not paths:
        fix = "a block is a member of an nn.ModuleList or nn.Sequential, runs once, and adds to what it takes in"
        raise UserError(f"{type(model).__name__} has no residual blocks", key="model", fix=fix)
    chains = {chain[0]: chain for chain in _chains(model, paths, few)}
    forms = dict(zip(paths, answer_forms(model, paths, few), strict=True))
    order = [path for chain in chains.values() for path in chain]
    block: Block | None = None
    for path in track(order, "blocks", len(order)):
        if block is None or path in chains:
            chain = chains[path]
            hidden, given = _caught(model, chain, [forms[one] for one in chain], batches)
        else:
            hidden = list(block.run())
        block = Block(path, model.get_submodule(path), hidden, given.pop(path))
        yield block


def second_moments(
    run: Callable[[], object], layers: Mapping[str, nn.Module], diagonal: bool = False
) -> dict[str, Tensor]:
    """The mean over all rows of the products of a layer's inputs; of several processes, over the rows of all.

    Args:
        run: runs the layers.
        layers: linear layers by name.
        diagonal: only of each input with itself.

    Returns:
        By name ``(inputs, inputs)``, or ``(inputs,)`` if ``diagonal``; of layers that ran.
    """
    found: dict[str, Tensor] = {}
    rows: dict[str, int] = {}
    last: list[Tensor] = []  # layers that take the same tensor share its products

    def take(name: str, x: Tensor) -> None:
        if not last or last[0] is not x:
            flat = x.detach().reshape(-1, x.shape[-1]).float()
            last[:] = [x, flat.square().mean(0) if diagonal else flat.T @ flat / len(flat)]
        size, seen = x.numel() // x.shape[-1], rows.get(name, 0)
        found[name] = found[name].lerp(last[1], size / (seen + size)) if seen else last[1]
        rows[name] = seen + size

    hooks = [m.register_forward_pre_hook(lambda _, x, name=name: take(name, x[0])) for name, m in layers.items()]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return pooled(found, rows)


def _chains(model: nn.Module, paths: Sequence[str], inputs: Inputs) -> list[list[str]]:
    """The blocks in the order in which they run; in a chain each takes in what the one before gives out."""
    chains: list[list[str]] = []
    given_out: list[Tensor | None] = [None]

    def before(path: str, args: tuple, kwargs: dict[str, Any]) -> None:
        if chains and first_tensor((*args, *kwargs.values())) is given_out[0]:
            chains[-1].append(path)
        else:
            chains.append([path])

    def after(output: Any) -> None:
        given_out[0] = first_tensor(output)

    hooks = []
    for path in paths:
        module = model.get_submodule(path)
        hooks.append(
            module.register_forward_pre_hook(lambda _, x, named, path=path: before(path, x, named), with_kwargs=True)
        )
        hooks.append(module.register_forward_hook(lambda _, __, output: after(output)))
    _run_hooked(model, [inputs], hooks)
    return chains


def _caught(
    model: nn.Module, chain: Sequence[str], forms: Sequence[Form], batches: Sequence[tuple[Tensor, ...]]
) -> tuple[list[Tensor], dict[str, list[Given]]]:
    """What the first block of a chain takes in, and the other arguments of each of its blocks, of which none is run."""
    hidden: list[Tensor] = []
    given: dict[str, list[Given]] = {path: [] for path in chain}

    def answer(number: int, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        taken = first_tensor((*args, *kwargs.values()))
        assert taken is not None
        if number == 0:
            hidden.append(taken)
        given[chain[number]].append((replaced(args, taken, HIDDEN), replaced(kwargs, taken, HIDDEN)))
        if number == len(chain) - 1:
            raise _EnoughError
        return taken

    with in_place_of([model.get_submodule(path) for path in chain], forms, answer):
        _run_hooked(model, batches, [])
    return hidden, given


@contextmanager
def in_place_of(
    blocks: Sequence[nn.Module],
    forms: Sequence[Form],
    answer: Answer,
) -> Iterator[None]:
    """Inside, blocks are not run: a function of their number and their arguments answers in their place.

    Args:
        blocks: in the order in which they run.
        forms: of `answer_forms`.
        answer: gives the hidden state that the block hands on.
    """

    def forward(number: int) -> Callable[..., Any]:
        def stub(*args: Any, **kwargs: Any) -> Any:
            return forms[number](answer(number, args, kwargs))

        return stub

    for number, block in enumerate(blocks):
        block.forward = forward(number)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


@torch.no_grad()
def answer_forms(model: nn.Module, paths: Sequence[str], inputs: Inputs) -> list[Form]:
    """For each block what makes an answer of its form of a hidden state: a tensor, or a tuple or mapping with it.

    Args:
        model: in evaluation mode; run once.
        paths: of its blocks, each of which runs once.
        inputs: of the model.
    """
    found: dict[str, Form] = {}

    def note(path: str, answer: Any) -> None:
        found[path] = _form(answer)

    hooks = [
        model.get_submodule(path).register_forward_hook(lambda _, __, answer, path=path: note(path, answer))
        for path in paths
    ]
    try:
        call(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return [found[path] for path in paths]


def _form(answer: Any) -> Form:
    hidden = first_tensor(answer)
    if isinstance(answer, Tensor):
        return lambda state: state
    if isinstance(answer, Mapping):
        kind = type(answer)
        return lambda state: kind(**{name: state if value is hidden else None for name, value in answer.items()})
    return lambda state: tuple(state if value is hidden else None for value in answer)


def _run_hooked(model: nn.Module, batches: Sequence[Inputs], hooks: Sequence[Any]) -> None:
    try:
        with torch.no_grad():
            for inputs in batches:
                try:
                    call(model, inputs)
                except _EnoughError:
                    continue
    finally:
        for hook in hooks:
            hook.remove()
